"""The laws of architecture and activations."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.port import ACTIVATIONS, FLOAT64_COPY
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites


def at_every_site(config: Config) -> list[str | None]:
    """Each operation has a finding of its own."""
    return list(sites(config))


LAW = Law(
    "Architecture and activations",
    1,
    (
        Part(
            "architecture",
            None,
            "in float64 every operation is the reference's, on the port's own input; of the "
            "default inputs on the shortest, the longest, the repetition and the batch",
            needs=(FLOAT64_COPY, ACTIVATIONS),
            sites=at_every_site,
        ),
        Part(
            "activations.local",
            None,
            "the same in the declared precision",
            needs=(ACTIVATIONS,),
            sites=at_every_site,
        ),
        Part(
            "activations.cascaded",
            None,
            "every site against the reference's own run",
            needs=(ACTIVATIONS,),
            sites=at_every_site,
        ),
    ),
)
