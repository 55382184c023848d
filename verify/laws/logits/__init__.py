"""The law of the logits."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.reference.config import Config


def at_the_logits(config: Config) -> list[str | None]:
    """The last site."""
    return ["logits"]


def where_stored(config: Config) -> list[str | None]:
    """A graph is not promised: few checkpoints have one."""
    return []


LAW = Law(
    "Logits",
    2,
    (
        Part(
            "logits",
            None,
            "end to end, over all, by token, by position and one by one; up to a constant at each "
            "position, which is said",
            sites=at_the_logits,
        ),
        Part(
            "determinism",
            None,
            "the same input twice, the same bits; or bits that are within rounding of the first, "
            "and that all later calls have",
        ),
        Part(
            "graph.meta",
            None,
            "the graph that is stored beside the weights computes the same logits",
            sites=where_stored,
        ),
    ),
)
