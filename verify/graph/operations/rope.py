"""Rotary positions: the channels of each head turned in pairs."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import FUNCTION_ULP, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.architecture import Rope
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import heads_of, side_by_side
from gpt_verify.reference.positions import frequencies, pairs, rotate, turns
from gpt_verify.sites import Site

#: Roundings of a frequency once it is a power of θ: the reciprocal, and what scaling does (a
#: quotient, two products and a sum).
_OF_A_FREQUENCY = 5


def rope_of(config: Config, site: Site) -> Rope:
    assert site.layer is not None, "queries and keys belong to a layer"
    rope = config.rope(site.layer)
    assert rope is not None, "a layer that has positions"
    return rope


def value(call: Call) -> Array:
    rope, length = rope_of(call.config, call.site), len(call.x) // call.rows
    places = np.tile(np.arange(length), call.rows)
    turned = rotate(heads_of(call.x, call.site.heads), *turns(rope, places, call.dtype), rope)
    return side_by_side(turned)


def rounding(p: Precision, x: Measured, rope: Rope, heads: int) -> Measured:
    """a cos - b sin: two products, a sum, and a cosine and a sine that are stored.

    The angle p f is off as well, by as many units as it is long: f is θ to a power whose exponent
    is rounded, and then a number that is. What the angle's error does to one channel of a pair is
    the other channel.

    Args:
        p: the port's precision.
        x: queries or keys, [T, heads · K], with their budget.
        rope: how they are turned.
        heads: how many there are.
    """
    x_HTK = heads_of(x.value, heads)
    t = x_HTK.shape[1]
    cos_TR, sin_TR = turns(rope, np.arange(t), np.float64)
    y_HTK = rotate(x_HTK, cos_TR, sin_TR, rope)
    f_R = frequencies(rope)
    exponent_R = np.abs(np.log(rope.theta ** (-np.arange(0, rope.size, 2) / rope.size)))
    relative_R = np.sqrt(exponent_R**2 + FUNCTION_ULP**2 + _OF_A_FREQUENCY + 1)
    angle_TR = p.u_sum * np.arange(t)[:, None] * f_R * relative_R
    # The function, what the attention factor makes of it, and how it is stored.
    table2 = (FUNCTION_ULP * p.u_sum) ** 2 + 2 * p.u**2
    variance = np.zeros_like(y_HTK)
    a, b = pairs(rope)
    for one, other, cos, sin in ((a, b, cos_TR, sin_TR), (b, a, cos_TR, sin_TR)):
        products = (x_HTK[..., one] * cos) ** 2 + (x_HTK[..., other] * sin) ** 2
        variance[..., one] = (table2 + p.u**2) * products + (p.u * y_HTK[..., one]) ** 2
        variance[..., one] += (y_HTK[..., other] * angle_TR) ** 2
    if x.budget is not None:
        dx2_HTK = heads_of(x.budget**2, heads)
        variance += rotate(dx2_HTK, np.ones_like(cos_TR), np.zeros_like(sin_TR), rope)
        variance[..., a] += dx2_HTK[..., b]
        variance[..., b] += dx2_HTK[..., a]
    return measured(p, side_by_side(y_HTK), side_by_side(variance))


def back(step: Step, d_TX: Array) -> Back:
    """Turned back."""
    rope = rope_of(step.config, step.site)
    cos_TR, sin_TR = turns(rope, np.arange(len(d_TX)), step.dtype)
    return Back((side_by_side(rotate(heads_of(d_TX, step.site.heads), cos_TR, -sin_TR, rope)),))


def cancels(step: Step, d_TX: Array) -> Array:
    """Two products may be nearly each other's opposite."""
    rope = rope_of(step.config, step.site)
    cos_TR, sin_TR = (np.abs(x) for x in turns(rope, np.arange(len(d_TX)), step.dtype))
    d_HTK = np.abs(heads_of(d_TX, step.site.heads))
    size_HTK, (a, b) = d_HTK.copy(), pairs(rope)
    size_HTK[..., a] = d_HTK[..., a] * cos_TR + d_HTK[..., b] * sin_TR
    size_HTK[..., b] = d_HTK[..., b] * cos_TR + d_HTK[..., a] * sin_TR
    return side_by_side(size_HTK)


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), rope_of(at.config, at.site), at.site.heads)


OPERATION = Operation(value, budget, back, cancels=cancels)
