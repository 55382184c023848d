"""How much each target asks for each source, before the mask."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step, joined
from gpt_verify.graph.call import Call
from gpt_verify.graph.heads import split_measured, together
from gpt_verify.graph.operation import At, Operation
from gpt_verify.graph.tiles import EVERY
from gpt_verify.numerics.budgets import Measured, measured, sum_of_squares
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops


def value(call: Call) -> Array:
    return ops.attention_scores(call.part("q"), call.part("k"), call.config.keys.scale)


def rounding(p: Precision, qkv: Measured, n_head: int, heads: slice = EVERY) -> Measured:
    """The scores, where queries and keys lie in one site.

    Args:
        p: the port's precision.
        qkv: queries, keys and values side by side, [T, 3D], with their budget.
        n_head: H, of the model.
        heads: which of them.
    """
    q, k, _ = (x[heads] for x in ops.split_heads(qkv.value, n_head))
    if qkv.budget is None:
        return product(p, Measured(q), Measured(k))
    dq, dk, _ = (x[heads] for x in ops.split_heads(qkv.budget, n_head))
    return product(p, Measured(q, dq), Measured(k, dk))


def product(p: Precision, q: Measured, k: Measured, scale: float | None = None) -> Measured:
    """q·k / √K is a sum of K products; q and k may each be scaled, and so rounded, beforehand.

    Args:
        p: the port's precision.
        q, k: [H, T, K] and [H, S, K], with their budgets.
        scale: in place of 1 / √K, where the model has another one.
    """
    q_HTK, k_HSK = q.value, k.value
    value_HTS = ops.attention_scores(q_HTK, k_HSK, scale)
    k_HKS, size = k_HSK.transpose(0, 2, 1), q_HTK.shape[-1]
    by = size if scale is None else scale**-2
    spread_HTS = sum_of_squares(q_HTK, k_HKS) / by
    variance = (size * p.u_sum**2 + 2 * p.u**2) * spread_HTS
    # The product, the scale and the sum with a mask, each stored once.
    variance += (size * p.u_sum**2 + 3 * p.u**2) * value_HTS**2
    if q.budget is not None:
        variance += sum_of_squares(q.budget, k_HKS) / by
    if k.budget is not None:
        variance += sum_of_squares(q_HTK, k.budget.transpose(0, 2, 1)) / by
    return measured(p, value_HTS, variance)


def back(step: Step, d_HTS: Array) -> Back:
    q_HTK, k_HSK, scale = step.part("q"), step.part("k"), step.config.keys.scale
    d_HTS = d_HTS / float(np.sqrt(q_HTK.shape[-1])) if scale is None else d_HTS * scale
    d_q, d_k = d_HTS @ k_HSK, d_HTS.transpose(0, 2, 1) @ q_HTK
    if step.config.keys.fused:
        return Back((joined(d_q, d_k, None),))
    return Back((together(step.config, d_q, "q"), together(step.config, d_k, "k")))


def budget(p: Precision, at: At) -> Measured:
    if at.config.keys.fused:
        return rounding(p, at.input(0), at.config.n_head, at.heads)
    q = split_measured(at.config, at.input(0), "q", at.heads)
    k = split_measured(at.config, at.input(1), "k", at.heads)
    return product(p, q, k, at.config.keys.scale)


OPERATION = Operation(value, budget, back, by_head=True, masked=True)
