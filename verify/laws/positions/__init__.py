"""The laws of the position table."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part, a_whole_context
from gpt_verify.laws.positions.check import check_beyond, check_limit
from gpt_verify.laws.positions.faults import FAULTS
from gpt_verify.reference.config import Config


def without_a_table(config: Config) -> str | None:
    """Why a model has no last position."""
    return None if config.keys.table else "its positions are computed, and have no maximum"


LAW = Law(
    "Positions",
    62,
    (
        Part(
            "positions.limit",
            check_limit,
            "n_ctx tokens are taken, and the last of them is correct",
            takes=a_whole_context,
        ),
        Part(
            "positions.beyond",
            check_beyond,
            "one more is refused, with a cache as well, and the port can be used afterwards; a "
            "port that does not refuse is told what it does instead",
            free=without_a_table,
            takes=a_whole_context,
        ),
    ),
    FAULTS,
    shares="causality",
)
