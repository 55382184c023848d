"""The law of precision."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.precision.check import check_precision
from gpt_verify.laws.precision.faults import FAULTS
from gpt_verify.port import ACTIVATIONS

LAW = Law(
    "Precision",
    20,
    (
        Part(
            "precision",
            check_precision,
            "the format in which each product is really computed, inferred from its errors, is "
            "the declared one or wider; TF32, three products of bfloat16 and autocast are named",
            needs=(ACTIVATIONS,),
        ),
    ),
    FAULTS,
)
