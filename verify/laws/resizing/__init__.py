"""The law of resizing."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.resizing.check import check_resizing
from gpt_verify.laws.resizing.faults import FAULTS
from gpt_verify.port import PARAMETERS, RESIZED

LAW = Law(
    "Resizing",
    18,
    (
        Part(
            "resizing",
            check_resizing,
            "a copy with more rows in its vocabulary, and one with fewer "
            "(`resize_token_embeddings`): the rows of old tokens, their logits and the tie are as "
            "they were, and the loss takes the new ids",
            needs=(RESIZED, PARAMETERS),
            in_one_call=True,
        ),
    ),
    FAULTS,
)
