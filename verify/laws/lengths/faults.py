"""A fault that shows at one length, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.fault import AroundPort, Fault

#: What the logits are multiplied by there.
OFF = 1.02


def _at_one_length(port: Any, checkpoint: Checkpoint) -> None:
    """One that is no power of two, nor one more or less, in any context that has such a one."""
    right = port.logits
    length = min(6, max(1, checkpoint.config.n_ctx - 1))

    def logits(tokens: Any) -> Any:
        made = right(tokens)
        if tokens.shape[1] != length:
            return made
        return np.asarray(made * np.asarray(OFF, made.dtype), made.dtype)

    port.logits = logits


FAULTS = (
    Fault(
        "lengths-one",
        "lengths",
        "has a path of its own for one length, which is wrong",
        inject=AroundPort(_at_one_length),
        law="lengths",
        needs="shows where the context has more than one token",
    ),
)
