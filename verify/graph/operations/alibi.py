"""Scores that fall with the distance."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.graph.tiles import EVERY
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import positions


def value(call: Call) -> Array:
    slopes_H = positions.slopes(call.config.n_head)
    return positions.alibi(call.x, np.tile(slopes_H, call.rows))


def rounding(p: Precision, scores: Measured, n_head: int, heads: slice = EVERY) -> Measured:
    """The slope and its product with a distance are rounded, and the sum.

    A port may add slope · s instead, which a softmax cannot tell apart, and whose size is another:
    the larger of the two counts.

    Args:
        p: the port's precision.
        scores: before the slopes, [H, T, S], with their budget.
        n_head: H, of the model, which sets the slopes.
        heads: which of them the scores are of.
    """
    slopes_H = positions.slopes(n_head)[heads]
    value_HTS = positions.alibi(scores.value, slopes_H)
    t, s = value_HTS.shape[-2:]
    target_T1, source_S = np.arange(t)[:, None], np.arange(s)
    added_HTS = slopes_H[:, None, None] * np.maximum(target_T1 - source_S, source_S)
    variance = p.u**2 * (2 * added_HTS**2 + (np.abs(scores.value) + added_HTS) ** 2)
    if scores.budget is not None:
        variance += scores.budget**2
    return measured(p, value_HTS, variance)


def back(step: Step, d_HTS: Array) -> Back:
    return Back((d_HTS,))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0, at.heads), at.config.n_head, at.heads)


OPERATION = Operation(value, budget, back, by_head=True, masked=True)
