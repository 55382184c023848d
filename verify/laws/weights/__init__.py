"""The laws of the weights."""

from __future__ import annotations

from gpt_verify.laws.gradient.check import at_the_weights
from gpt_verify.laws.law import Law, Part
from gpt_verify.port import PARAMETERS

LAW = Law(
    "Weights",
    0,
    (
        Part(
            "weights.values",
            None,
            "every tensor of the checkpoint, found in the port, bit for bit after the declared "
            "cast",
            needs=(PARAMETERS,),
            sites=at_the_weights,
        ),
        Part(
            "weights.accounted",
            None,
            "every parameter of the port is a tensor of the checkpoint",
            needs=(PARAMETERS,),
        ),
        Part(
            "weights.count",
            None,
            "the port has exactly as many trained numbers as the checkpoint",
            needs=(PARAMETERS,),
        ),
    ),
)
