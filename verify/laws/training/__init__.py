"""The laws of training."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part, every_gradient
from gpt_verify.laws.training.check import (
    check_accumulation,
    check_checkpointing,
    check_freezing,
    check_mode,
)
from gpt_verify.laws.training.faults import FAULTS
from gpt_verify.port import LEARN, MODES, PARAMETERS, UNFROZEN

LAW = Law(
    "Training",
    72,
    (
        Part(
            "training.mode",
            check_mode,
            "`train()` with every dropout at 0 has the logits, the loss and the gradients of "
            "`eval()`, of a plain batch and of a padded one; a port that draws at random all the "
            "same is not examined",
            needs=(LEARN, MODES, PARAMETERS),
            in_one_call=True,
            takes=every_gradient,
        ),
        Part(
            "training.checkpointing",
            check_checkpointing,
            "the same with gradient checkpointing, where there is a switch (transformers' method, "
            "or a flag such as `use_checkpoint`); and what drops at random drops the same when it "
            "is computed again",
            needs=(LEARN, MODES, PARAMETERS),
            in_one_call=True,
            takes=every_gradient,
        ),
        Part(
            "training.accumulation",
            check_accumulation,
            "gradients that are added up over two parts of a batch, each by its share of the "
            "predictions, are those of the whole; so is the loss where the port divides by "
            "`num_items_in_batch`. And the gradients by the port's own loss, some of whose labels "
            "are ignored, are those of the mean cross entropy of its logits",
            needs=(LEARN, PARAMETERS),
            in_one_call=True,
            takes=every_gradient,
        ),
        Part(
            "training.freezing",
            check_freezing,
            "every parameter frozen and unfrozen: the same parameters in the same memory, and the "
            "same gradients",
            needs=(LEARN, UNFROZEN, PARAMETERS),
            in_one_call=True,
            takes=every_gradient,
        ),
    ),
    FAULTS,
    follows="gradient",
)
