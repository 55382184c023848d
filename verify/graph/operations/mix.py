"""The values of all sources, weighted by the pattern; heads side by side again."""

from __future__ import annotations

import math
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

#: Targets of each stretch, twice as long as the one before, whose covariance is computed.
SAMPLED = 16


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


def weighted(
    p: Precision, pattern: Measured, v: Measured, together_HTK: Floats | None = None
) -> Measured:
    """Weighted sum of values: T products. A fused kernel stores the weights before it divides.

    Args:
        p: the port's precision.
        pattern, v: [H, T, S] and [H, S, K], with their budgets.
        together_HTK: the square of what one error does to all weights of a target together.
    """
    v_HSK = v.value
    value_TD = ops.attention_mix(pattern.value, v_HSK)
    t = len(value_TD)
    spread_TD = _heads_side_by_side(sum_of_squares(pattern.value, v_HSK))
    variance = (t * p.u_sum**2 + p.u**2) * spread_TD + (t * p.u_sum**2 + 2 * p.u**2) * value_TD**2
    if pattern.budget is not None:
        variance += _heads_side_by_side(sum_of_squares(pattern.budget, v_HSK))
    if v.budget is not None:
        variance += _heads_side_by_side(sum_of_squares(pattern.value, v.budget))
    if together_HTK is not None:
        variance += _heads_side_by_side(together_HTK)
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
    scores = _hidden_scores(at) if p.u > p.u_sum else None

    def of(heads: slice) -> Measured:
        pattern, v = at.input(0, heads), split_measured(at.config, values, "v", heads)
        together = None if scores is None else of_queries(p, scores, pattern.value, v.value, heads)
        return weighted(p, pattern, v, together)

    parts = by_twos([partial(of, heads) for heads in head_tiles(n_head, len(at.tokens_T))])
    known = [part.budget for part in parts if part.budget is not None]
    return Measured(
        np.concatenate([part.value for part in parts], axis=-1), np.concatenate(known, axis=-1)
    )


def _hidden_scores(at: At) -> At | None:
    """The scores of the pattern, where the port shows neither."""
    made = at.hidden(0)
    while made is not None and made.site.kind != "attn.scores":
        made = made.hidden(0)
    return made


def of_queries(
    p: Precision, scores: At, pattern_HTS: Floats, v_HSX: Floats, heads: slice
) -> Floats | None:
    """What the rounding of a query does to the mix, squared, [H, T, X]; None where none is rounded.

    One error of a query is an error of all its scores, which does not average out over the sources
    as independent ones do: Σ δ_c² C² over the channels c, where C is the covariance of keys and
    values under the pattern. It is the bound of Cauchy and Schwarz, Σ δ_c² Var(k_c) Var(v), times
    the largest part of that which some targets were found to have.
    """
    config = scores.config
    q = split_measured(config, scores.input(0), "q", heads)
    k = split_measured(config, scores.input(0 if config.keys.fused else 1), "k", heads)
    size = q.value.shape[-1]
    scale = config.keys.scale or 1 / math.sqrt(size)
    error2 = np.zeros_like(q.value)
    if math.frexp(scale)[0] != 0.5:  # a power of two rounds nothing
        error2 += p.u**2 * q.value**2
    if q.budget is not None:
        error2 += q.budget**2
    if not error2.any():
        return None
    error2 *= scale**2
    found = np.empty((*pattern_HTS.shape[:2], v_HSX.shape[-1]))
    for h, (p_TS, e2_TK, k_SK, v_SX) in enumerate(
        zip(pattern_HTS, error2, k.value, v_HSX, strict=True)
    ):
        found[h] = _covariance(*(np.asarray(x, np.float32) for x in (p_TS, e2_TK, k_SK, v_SX)))
    return found


def _covariance(p_TS: Floats, error2_TK: Floats, k_SK: Floats, v_SX: Floats) -> Floats:
    """Σ error² C², bounded as ``of_queries`` says, of one head."""
    mean_TK, mean_TX = p_TS @ k_SK, p_TS @ v_SX
    of_k_TK = np.maximum(p_TS @ (k_SK * k_SK) - mean_TK**2, 0)
    of_v_TX = np.maximum(p_TS @ (v_SX * v_SX) - mean_TX**2, 0)
    bound_TX = np.sum(error2_TK * of_k_TK, axis=-1, keepdims=True) * of_v_TX
    first = 1
    while first < len(p_TS):  # the first target sees one source, of which nothing varies
        last = min(2 * first, len(p_TS))
        at = np.unique(np.linspace(first, last - 1, SAMPLED).astype(int))
        few_NS, exact_NX = p_TS[at], np.zeros((len(at), v_SX.shape[-1]), np.float32)
        for c, k_S in enumerate(k_SK.T):
            c_NX = (few_NS * k_S) @ v_SX - mean_TK[at, c : c + 1] * mean_TX[at]
            exact_NX += error2_TK[at, c : c + 1] * c_NX**2
        part_X = np.max(exact_NX / np.maximum(bound_TX[at], np.finfo(np.float32).tiny), axis=0)
        bound_TX[first:last] *= np.minimum(part_X, 1)
        first = last
    return np.asarray(bound_TX)


OPERATION = Operation(value, budget, back)
