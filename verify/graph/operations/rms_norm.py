"""RMS norm with a gain: of the stream, or of queries and keys, head by head or all together."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Pulled, Step, mean
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import FUNCTION_ULP, Floats, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops
from gpt_verify.reference.architecture import Norm


def grouped(x_TX: Array, g_D: Array) -> Array:
    """Whatever is normed by itself in the last axis: [T, 1, D], or [T, heads, K]."""
    return x_TX.reshape(len(x_TX), -1, len(g_D))


def gain(g_D: Array, norm: Norm) -> Array:
    return 1 + g_D if norm.plus_one else g_D


def value(call: Call) -> Array:
    g_D, norm = call.own(0), call.config.keys.norm
    normed = ops.rms_norm(grouped(call.x, g_D), gain(g_D, norm), norm.epsilon)
    return normed.reshape(call.x.shape)


def rounding(p: Precision, x: Measured, g_D: Floats, norm: Norm) -> Measured:
    """First-order running error of the mean of squares, the reciprocal root and two products.

    Σx² is a sum of n terms of one sign, each with one rounding of its own, in the accumulator.
    Whether x r is stored before it is multiplied with the gain differs from one family to the next;
    so does whether 1 + g is.

    Args:
        p: the port's precision.
        x: [T, D], with its budget.
        g_D: the gain as it is stored; one of the size of a head, where each head is normed.
        norm: ε, and whether the gain is 1 + g.
    """
    x_TGD, scale_D = grouped(x.value, g_D), gain(g_D, norm)
    n = x_TGD.shape[-1]
    squares = x_TGD**2
    mean_TG1 = np.mean(squares, axis=-1, keepdims=True)
    fourth_TG1 = np.mean(squares**2, axis=-1, keepdims=True)
    r_TG1 = 1.0 / np.sqrt(mean_TG1 + norm.epsilon)
    # The sum, the division by n, the sum with ε.
    mean_error2 = p.u_sum**2 * (fourth_TG1 / n + (n + 1) * mean_TG1**2 + r_TG1**-4)
    # d(m + ε)^(-1/2) = -r dm / 2(m + ε)
    r_relative2 = 0.25 * mean_error2 * r_TG1**4 + (FUNCTION_ULP * p.u_sum) ** 2
    value_TGD = scale_D * (x_TGD * r_TG1)
    variance = value_TGD**2 * (r_relative2 + (3 if norm.plus_one else 2) * p.u**2)
    if x.budget is not None:
        variance += (scale_D * grouped(x.budget, g_D) * r_TG1) ** 2
    return measured(p, value_TGD.reshape(x.value.shape), variance.reshape(x.value.shape))


def normed(step: Step) -> tuple[Array, Array, Array]:
    """What it makes before its gain, the root that it divides by as a port keeps it, the gain."""
    g_D, norm = step.own(0), step.config.keys.norm
    x_TGD = grouped(step.x, g_D)
    root_TG1 = step.keep(np.sqrt(np.mean(x_TGD**2, axis=-1, keepdims=True) + norm.epsilon))
    return x_TGD / root_TG1, root_TG1, gain(g_D, norm)


def back(step: Step, d_TX: Array) -> Back:
    n_TGD, root_TG1, scale_D = normed(step)
    d_TGD = d_TX.reshape(n_TGD.shape)
    e_TGD = d_TGD * scale_D
    x_TGD = (e_TGD - n_TGD * mean(e_TGD * n_TGD)) / root_TG1
    return Back((x_TGD.reshape(d_TX.shape),), (Pulled(None, np.sum(d_TGD * n_TGD, axis=1)),))


def cancels(step: Step, d_TX: Array) -> Array:
    """It takes away what lies along x."""
    n_TGD, root_TG1, scale_D = normed(step)
    e_TGD = np.abs(d_TX.reshape(n_TGD.shape) * scale_D)
    size = (e_TGD + np.abs(n_TGD) * mean(e_TGD * np.abs(n_TGD))) / root_TG1
    return size.reshape(d_TX.shape)


def effect(call: Call, direction: Direction) -> Array:
    moved = ops.rms_norm(
        grouped(call.x, direction.right), direction.right, call.config.keys.norm.epsilon
    )
    return moved.reshape(call.x.shape)


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), at.wide(0), at.config.keys.norm)


OPERATION = Operation(value, budget, back, effect, cancels=cancels)
