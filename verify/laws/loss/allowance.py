"""By how much two computations of the same loss may differ."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.subject import Subject
from gpt_verify.numerics.loss import losses, mean_budget
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.port import IGNORED

Tokens = NDArray[np.integer]


def allowance(
    subject: Subject, tokens: Tokens, labels: Tokens, mask: Tokens | None = None
) -> float:
    """In nats: what rounding of the loss does, and what noise of the logits does to it, of a port
    whose logits are nearly the reference's. Each of two runs has its own.

    Args:
        tokens, labels, mask: int[B, T].
    """
    p = subject.precision if subject.precision.u > FLOAT32.u else FLOAT32
    noise, budgets, nats = [], [], []
    for row, tokens_T in enumerate(tokens):
        real = np.ones(len(tokens_T), bool) if mask is None else mask[row] == 1
        sequence, wanted = tokens_T[real], labels[row, real] != IGNORED
        floor_T = subject.floor(sequence)
        with np.errstate(all="ignore"):
            own = losses(subject.port.logits(sequence[None]), sequence[None], p, (1,), ())
        of = wanted[1:]
        noise += list((floor_T * own.slope[0])[:-1][of])
        budgets += list(own.budget[0, :-1][of])
        nats += list(own.nats[1][0, :-1][of])
    if not nats:
        return math.inf
    rounding = mean_budget(p, np.array(nats), np.array(budgets))
    return math.sqrt(2.0) * LIMIT_FLOORS * (rounding + float(np.mean(noise)))
