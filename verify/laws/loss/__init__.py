"""The laws of the loss."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.loss.check import (
    check_loss,
    check_loss_batch,
    check_loss_ignored,
    check_loss_reference,
)
from gpt_verify.laws.loss.faults import FAULTS
from gpt_verify.port import LOSS

LAW = Law(
    "Loss",
    40,
    (
        Part(
            "loss.value",
            check_loss,
            "the port's loss is the mean cross entropy of its own logits with the next token, in "
            "nats",
            needs=(LOSS,),
        ),
        Part(
            "loss.ignored",
            check_loss_ignored,
            "labels of −100 count neither above nor below the line",
            needs=(LOSS,),
        ),
        Part(
            "loss.batch",
            check_loss_batch,
            "over rows of unequal length, the mean over tokens, not the mean of means",
            needs=(LOSS,),
        ),
        Part(
            "loss.reference",
            check_loss_reference,
            "end to end, the loss of the reference's logits",
            needs=(LOSS,),
        ),
    ),
    FAULTS,
)
