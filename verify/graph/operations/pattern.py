"""The causal softmax."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.back import Array, Back, Pulled, Step, mean_of
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import Floats, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site

#: How many budgets an element may deviate before first-order propagation through an exponential
#: is no longer trusted; used to keep the bound valid where scores are large and u is coarse.
LARGE_DEVIATION = 6.0


def value(call: Call) -> Array:
    return ops.causal_softmax(call.x, _window(call.config, call.site), _sinks(call))


def _window(config: Config, site: Site) -> int | None:
    assert site.layer is not None, "a pattern belongs to a layer"
    return config.window(site.layer)


def _sinks(call: Call) -> Array | None:
    """One for each head of each row."""
    return np.tile(call.own(0), call.rows) if call.site.weights else None


def rounding(
    p: Precision, scores: Measured, window: int | None = None, sinks_H: Floats | None = None
) -> Measured:
    """The causal softmax. A sink is one more source, of which nothing is read.

    Args:
        p: the port's precision.
        scores: [H, T, S], with their budget.
        window: how many sources a target reads, itself included; all up to itself where None.
        sinks_H: the score of each head's sink; None where the model has none.
    """
    t, s = scores.value.shape[-2:]
    below_TS = ops.sees((t, s), window)
    if sinks_H is None:
        return softmax_rounding(p, scores, below_TS, ops.causal_softmax(scores.value, window))
    sink_HT1 = np.broadcast_to(sinks_H[:, None, None], (*scores.value.shape[:2], 1))
    every = np.concatenate([scores.value, sink_HT1], axis=-1)
    below_TS = np.concatenate([below_TS, np.ones((t, 1), np.bool_)], axis=-1)
    budget = scores.budget
    if budget is not None:
        budget = np.concatenate([budget, np.zeros_like(sink_HT1)], axis=-1)
    value_HTS = ops.softmax(np.where(below_TS, every, -np.inf))
    found = softmax_rounding(p, Measured(every, budget), below_TS, value_HTS)
    assert found.budget is not None, "an operation's result has a budget"
    return Measured(found.value[..., :-1], found.budget[..., :-1])


def softmax_rounding(
    p: Precision, scores: Measured, below_TS: NDArray[np.bool_], value_HTS: Floats
) -> Measured:
    """The softmax over the last axis, of what counts. The error of a score is a relative error of
    its exponential.

    Args:
        p: the port's precision.
        scores: [H, T, S], with their budget.
        below_TS: which sources count for which target.
        value_HTS: the softmax in float64.
    """
    t = value_HTS.shape[-2]
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
    """The derivative before a softmax over the last axis, from that of what it has made."""
    found: Array = pattern_HTS * (d_HTS - mean_of(pattern_HTS, d_HTS))
    return found


def back(step: Step, d_HTS: Array) -> Back:
    d_scores = softmax_back(step.value, d_HTS)
    if not step.site.weights:
        return Back((d_scores,))
    # That of the sink: it was not read, so that its own derivative is zero before the softmax.
    left_HT = 1 - step.value.sum(axis=-1)
    sunk_HT = -left_HT * np.sum(step.value * d_HTS, axis=-1)
    return Back((d_scores,), (Pulled(None, sunk_HT.T),))


def effect(call: Call, direction: Direction) -> Array:
    """The effect is one of first order: a softmax is not linear in its sinks."""
    pattern_HTS = value(call)
    left_HT1 = 1 - pattern_HTS.sum(axis=-1, keepdims=True)
    moved: Array = -pattern_HTS * left_HT1 * np.tile(direction.right, call.rows)[:, None, None]
    return moved


def cancels(step: Step, d: Array) -> Array:
    """It takes away what its sources have in common."""
    size: Array = step.value * (np.abs(d) + mean_of(step.value, np.abs(d)))
    return size


def budget(p: Precision, at: At) -> Measured:
    sinks_H = at.wide(0)[at.heads] if at.site.weights else None
    return rounding(p, at.input(0, at.heads), _window(at.config, at.site), sinks_H)


OPERATION = Operation(value, budget, back, effect, cancels=cancels, by_head=True)
