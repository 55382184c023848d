"""Faults that show after some calls, and in no other way."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.fault import AroundPort, Fault

#: The calls after which a port is worn out, and of how many calls one is wrong: a prime, so that it
#: is none of a pattern.
MANY, SOME = 100, 97
#: What the logits are multiplied by.
OFF = 1.02


def _off(logits: Any) -> Any:
    return np.asarray(logits * np.asarray(OFF, logits.dtype), logits.dtype)


def _after_many(port: Any, checkpoint: Checkpoint) -> None:
    """As where a buffer of results is full, or a counter overflows."""
    _counted(port, lambda calls: calls > MANY)


def _now_and_then(port: Any, checkpoint: Checkpoint) -> None:
    _counted(port, lambda calls: calls % SOME == 0)


def _counted(port: Any, wrong: Any) -> None:
    right, calls = port.logits, [0]

    def logits(tokens: Any) -> Any:
        calls[0] += 1
        return _off(right(tokens)) if wrong(calls[0]) else right(tokens)

    port.logits = logits


FAULTS = (
    Fault(
        "calls-worn-out",
        "calls",
        "computes something else from some call on, as where a buffer is full",
        inject=AroundPort(_after_many),
        law="calls",
    ),
    Fault(
        "calls-now-and-then",
        "calls",
        "computes something else now and then, in no call of which that can be foreseen",
        inject=AroundPort(_now_and_then),
        law="calls",
    ),
)
