"""The values of all sources, weighted by the pattern; heads side by side again."""

from __future__ import annotations

from functools import partial

import numpy as np

from gpt_verify.graph.back import Array, Back, Step, joined
from gpt_verify.graph.call import Call
from gpt_verify.graph.heads import split_measured, together
from gpt_verify.graph.operation import At, Operation
from gpt_verify.graph.tiles import EVERY, head_tiles
from gpt_verify.numerics.budgets import Floats, Measured, measured, sum_of_squares
from gpt_verify.numerics.parallel import by_twos
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops


def value(call: Call) -> Array:
    mix_TX = ops.attention_mix(call.x, call.part("v"))
    # The heads of all rows come out side by side, [T, R · D].
    by_row = mix_TX.reshape(len(mix_TX), call.rows, -1).swapaxes(0, 1)
    return by_row.reshape(-1, by_row.shape[-1])


def rounding(
    p: Precision, pattern: Measured, qkv: Measured, n_head: int, heads: slice = EVERY
) -> Measured:
    """The mix, where values lie in one site with queries and keys.

    Args:
        p: the port's precision.
        pattern: of the ``heads`` alone, [heads, T, S], with its budget.
        qkv: queries, keys and values side by side, [T, 3D].
        n_head: H, of the model.
        heads: which of them.

    Returns:
        [T, heads · K], with its budget.
    """
    v_HSK = ops.split_heads(qkv.value, n_head)[2][heads]
    if qkv.budget is None:
        return weighted(p, pattern, Measured(v_HSK))
    dv_HSK = ops.split_heads(qkv.budget, n_head)[2][heads]
    return weighted(p, pattern, Measured(v_HSK, dv_HSK))


def weighted(p: Precision, pattern: Measured, v: Measured) -> Measured:
    """Weighted sum of values: T products. A fused kernel stores the weights before it divides."""
    v_HSK = v.value
    value_TD = ops.attention_mix(pattern.value, v_HSK)
    t = len(value_TD)
    spread_TD = _heads_side_by_side(sum_of_squares(pattern.value, v_HSK))
    variance = (t * p.u_sum**2 + p.u**2) * spread_TD + (t * p.u_sum**2 + 2 * p.u**2) * value_TD**2
    if pattern.budget is not None:
        variance += _heads_side_by_side(sum_of_squares(pattern.budget, v_HSK))
    if v.budget is not None:
        variance += _heads_side_by_side(sum_of_squares(pattern.value, v.budget))
    return measured(p, value_TD, variance)


def _heads_side_by_side(x_HTK: Floats) -> Floats:
    h, t, k = x_HTK.shape
    return x_HTK.transpose(1, 0, 2).reshape(t, h * k)


def back(step: Step, d_TD: Array, pattern_HTS: Array | None = None) -> Back:
    """The derivatives of the sum over sources, weighted by the pattern, or by another one that is
    given."""
    v_HSK = step.part("v")
    pattern_HTS = step.x if pattern_HTS is None else pattern_HTS
    d_HTK = d_TD.reshape(len(d_TD), len(v_HSK), -1).transpose(1, 0, 2)
    of_v = pattern_HTS.transpose(0, 2, 1) @ d_HTK
    of_pattern = d_HTK @ v_HSK.transpose(0, 2, 1)
    if step.config.keys.fused:
        return Back((of_pattern, joined(None, None, of_v)))
    return Back((of_pattern, together(step.config, of_v, "v")))


def budget(p: Precision, at: At) -> Measured:
    """Some heads after the other, side by side in the end."""
    values, n_head = at.input(1), at.config.n_head

    def of(heads: slice) -> Measured:
        return weighted(p, at.input(0, heads), split_measured(at.config, values, "v", heads))

    parts = by_twos([partial(of, heads) for heads in head_tiles(n_head, len(at.tokens_T))])
    known = [part.budget for part in parts if part.budget is not None]
    return Measured(
        np.concatenate([part.value for part in parts], axis=-1), np.concatenate(known, axis=-1)
    )


OPERATION = Operation(value, budget, back)
