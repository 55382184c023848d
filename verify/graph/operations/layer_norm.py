"""Layer norm, with gain and bias."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Pulled, Step, mean, normed
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import FUNCTION_ULP, Floats, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops


def value(call: Call) -> Array:
    return ops.layer_norm(call.x, call.own(0), call.own(1), call.config.keys.norm.epsilon)


def rounding(
    p: Precision,
    x: Measured,
    g_D: Floats,
    b_D: Floats,
    epsilon: float = ops.LAYER_NORM_EPSILON,
) -> Measured:
    """First-order running error of mean, variance, reciprocal root, gain and bias.

    The error of the mean is common to a row: it matters most to elements that lie close to the
    mean, whose relative error is unbounded. Both ways of centring are covered, (x - μ) r and
    x r - μ r, hence the terms in x² and μ².

    Args:
        p: the port's precision.
        x: [T, D], with its budget.
        g_D, b_D: gain and bias.
        epsilon: what is added to the variance.
    """
    x_TD, n = x.value, x.value.shape[-1]
    value_TD = ops.layer_norm(x_TD, g_D, b_D, epsilon)
    mean_T1 = np.mean(x_TD, axis=-1, keepdims=True)
    centred_TD = x_TD - mean_T1
    squares_TD = centred_TD**2
    variance_T1 = np.mean(squares_TD, axis=-1, keepdims=True)
    r_T1 = 1.0 / np.sqrt(variance_T1 + epsilon)

    # Σx with n roundings, divided by n; then one rounding of the quotient.
    mean_error2_T1 = p.u**2 * (np.mean(x_TD**2, axis=-1, keepdims=True) + (n + 1) * mean_T1**2)
    # Σc² with n roundings of positive terms, each square with three of its own. The mean's error
    # enters in second order only, because Σc = 0.
    fourth_T1 = np.mean(squares_TD**2, axis=-1, keepdims=True)
    variance_error2_T1 = p.u**2 * ((1 + 9 / n) * fourth_T1 + (n + 1) * variance_T1**2)
    variance_error2_T1 += mean_error2_T1**2
    # d(v + ε)^(-1/2) = -r dv / 2(v + ε)
    r_relative2_T1 = 0.25 * variance_error2_T1 * r_T1**4 + (FUNCTION_ULP * p.u) ** 2

    normalised_TD = centred_TD * r_T1
    variance = r_T1**2 * (mean_error2_T1 + p.u**2 * (2 * squares_TD + x_TD**2 + mean_T1**2))
    variance += normalised_TD**2 * (r_relative2_T1 + p.u**2)
    if x.budget is not None:
        variance += (x.budget * r_T1) ** 2
    variance = g_D**2 * (variance + (p.u * normalised_TD) ** 2) + (p.u * value_TD) ** 2
    return measured(p, value_TD, variance)


def back(step: Step, d_TD: Array) -> Back:
    normed_TD, deviation_T1 = normed(step.x, step.keep, step.config.keys.norm.epsilon)
    e_TD = d_TD * step.own(0)
    x_TD = (e_TD - mean(e_TD) - normed_TD * mean(e_TD * normed_TD)) / deviation_T1
    return Back((x_TD,), (Pulled(None, d_TD * normed_TD), Pulled(None, d_TD)))


def cancels(step: Step, d: Array) -> Array:
    """It centres and projects, with x as it is (b · x + c) in torch's kernels."""
    x_TD, size_TD = np.abs(step.x), np.abs(d * step.own(0))
    _, deviation_T1 = normed(step.x, epsilon=step.config.keys.norm.epsilon)
    relative_TD = 1 + (x_TD + mean(x_TD)) / deviation_T1
    size: Array = (size_TD + mean(size_TD) * relative_TD) / deviation_T1
    return size


def effect(call: Call, direction: Direction) -> Array:
    if direction.tensor == call.site.weights[1]:
        return np.broadcast_to(direction.right, call.x.shape)
    epsilon = call.config.keys.norm.epsilon
    return ops.layer_norm(call.x, direction.right, np.zeros(1), epsilon)


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), at.wide(0), at.wide(1), at.config.keys.norm.epsilon)


OPERATION = Operation(value, budget, back, effect, cancels=cancels, normalises=True)
