"""The laws of the loss."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.loss.check import (
    check_loss,
    check_loss_batch,
    check_loss_ignored,
    check_loss_labels,
    check_loss_masked,
    check_loss_reference,
    takes,
)
from gpt_verify.laws.loss.faults import FAULTS
from gpt_verify.port import LOSS, MASKED_LOSS, PADDED

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
            takes=takes,
        ),
        Part(
            "loss.ignored",
            check_loss_ignored,
            "labels of −100 add nothing to the sum and are not counted in the mean",
            needs=(LOSS,),
        ),
        Part(
            "loss.labels",
            check_loss_labels,
            "−100 and nothing else is ignored: token 0, end of text, and the ids that the port "
            "takes for padding or an end are labels like others",
            needs=(LOSS,),
        ),
        Part(
            "loss.batch",
            check_loss_batch,
            "over rows of unequal length, the mean over tokens, not the mean of means",
            needs=(LOSS,),
        ),
        Part(
            "loss.masked",
            check_loss_masked,
            "mask and labels together: of batches padded on the right and on the left, the loss of "
            "the port's own padded logits over the labels that are not −100",
            needs=(LOSS, MASKED_LOSS, PADDED),
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
