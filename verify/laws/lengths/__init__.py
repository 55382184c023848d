"""The law of the lengths."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.lengths.check import check_lengths, takes
from gpt_verify.laws.lengths.faults import FAULTS

LAW = Law(
    "Lengths",
    31,
    (
        Part(
            "lengths",
            check_lengths,
            "the first tokens alone have the logits that they have in a whole context, or in 256 "
            "tokens of a large model: every short length, and longer ones that are drawn anew with "
            "each seed",
            takes=takes,
        ),
    ),
    FAULTS,
    follows="causality",
)
