"""The law of history."""

from __future__ import annotations

from gpt_verify.laws.history.check import check_history
from gpt_verify.laws.history.faults import FAULTS
from gpt_verify.laws.history.prompts import check_prompts
from gpt_verify.laws.law import Law, Part

LAW = Law(
    "History",
    112,
    (
        Part(
            "history",
            check_history,
            "the same tokens have the same logits after a run with a cache, a longer input, a "
            "batch, a run with a mask or with labels, and an id that does not exist; and so has "
            "the first input of the run, at the very end",
            history=True,
        ),
        Part(
            "history.prompts",
            check_prompts,
            "a prompt has the reference's logits right after another one with the same first 4, "
            "8, 16 or 64 tokens, with the same last ones, with two of them exchanged, and where "
            "another one lay in the same memory",
        ),
    ),
    FAULTS,
)
