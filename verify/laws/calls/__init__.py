"""The law of the calls."""

from __future__ import annotations

from gpt_verify.laws.calls.check import check_many
from gpt_verify.laws.calls.faults import FAULTS
from gpt_verify.laws.law import Law, Part

LAW = Law(
    "Calls",
    110,
    (
        Part(
            "calls",
            check_many,
            "a token has the same logits in many calls (48 to 352), and after them the first input "
            "of the run has those that it had",
            history=True,
        ),
    ),
    FAULTS,
)
