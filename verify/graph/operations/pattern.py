"""The causal softmax."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step, mean_of
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import Floats, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops

#: How many budgets an element may deviate before first-order propagation through an exponential
#: is no longer trusted; used to keep the bound valid where scores are large and u is coarse.
LARGE_DEVIATION = 6.0


def value(call: Call) -> Array:
    return ops.causal_softmax(call.x)


def rounding(p: Precision, scores: Measured) -> Measured:
    """Causal softmax. The error of a score is a relative error of its exponential."""
    value_HTS = ops.causal_softmax(scores.value)
    t = value_HTS.shape[-2]
    below_TS = np.tri(*value_HTS.shape[-2:], dtype=np.bool_)
    largest_HT1 = np.max(np.where(below_TS, scores.value, -np.inf), axis=-1, keepdims=True)
    shifted_HTS = np.where(below_TS, scores.value - largest_HT1, 0.0)

    exponent2_HTS = (p.u * shifted_HTS) ** 2
    if scores.budget is not None:
        exponent2_HTS += scores.budget**2
    exponential2_HTS = _exponential_growth(exponent2_HTS) + (p.exp_ulp * p.u_sum + p.u) ** 2
    # The denominator: its terms' own errors, weighted as the terms are, and t roundings.
    squares_HTS = value_HTS**2
    denominator2_HT1 = np.sum(squares_HTS * exponential2_HTS, axis=-1, keepdims=True)
    denominator2_HT1 += t * p.u_sum**2 * (np.sum(squares_HTS, axis=-1, keepdims=True) + 1)
    # The division, and once more the stored format.
    relative2_HTS = exponential2_HTS + denominator2_HT1 + p.u_sum**2 + p.u**2
    return measured(p, value_HTS, squares_HTS * relative2_HTS)


def _exponential_growth(variance: Floats) -> Floats:
    """Square of the relative error of exp(z), for an error of z with this variance.

    For small errors they are the same. For large ones exp grows faster than its tangent; the
    budget is then what makes λ = 6 budgets reach the exponential's value at λ = 6.
    """
    deviation = LARGE_DEVIATION * np.sqrt(variance)
    return (np.expm1(np.minimum(deviation, 300.0)) / LARGE_DEVIATION) ** 2


def softmax_back(pattern_HTS: Array, d_HTS: Array) -> Array:
    """Of what a softmax over the last axis has made."""
    found: Array = pattern_HTS * (d_HTS - mean_of(pattern_HTS, d_HTS))
    return found


def back(step: Step, d_HTS: Array) -> Back:
    return Back((softmax_back(step.value, d_HTS),))


def cancels(step: Step, d: Array) -> Array:
    """It takes away what its sources have in common."""
    size: Array = step.value * (np.abs(d) + mean_of(step.value, np.abs(d)))
    return size


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0, at.heads))


OPERATION = Operation(value, budget, back, cancels=cancels, by_head=True)
