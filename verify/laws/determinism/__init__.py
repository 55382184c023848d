"""The laws of determinism."""

from __future__ import annotations

from gpt_verify.laws.determinism.check import check_mode, check_state
from gpt_verify.laws.determinism.faults import FAULTS
from gpt_verify.laws.law import Law, Part
from gpt_verify.port import TRAINING

LAW = Law(
    "Determinism",
    100,
    (
        Part(
            "determinism.mode",
            check_mode,
            "no part is in training mode, no dropout acts",
            needs=(TRAINING,),
        ),
        Part(
            "determinism.state",
            check_state,
            "default dtype, grad mode, threads, random generators and backend flags are as they "
            "were found",
            history=True,
        ),
    ),
    FAULTS,
)
