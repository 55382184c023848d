"""The laws of the position table."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part, a_whole_context
from gpt_verify.laws.positions.check import check_beyond, check_limit
from gpt_verify.laws.positions.faults import FAULTS

LAW = Law(
    "Positions",
    62,
    (
        Part(
            "positions.limit",
            check_limit,
            "n_ctx tokens are taken, and the last of them is right",
            takes=a_whole_context,
        ),
        Part(
            "positions.beyond",
            check_beyond,
            "one more is refused, with a cache as well, and the port can be used afterwards; a "
            "port that does not refuse is told what it does instead",
            takes=a_whole_context,
        ),
    ),
    FAULTS,
)
