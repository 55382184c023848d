"""How much each target asks for each source, before the mask."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step, joined
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.graph.tiles import EVERY
from gpt_verify.numerics.budgets import Measured, measured, sum_of_squares
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops


def value(call: Call) -> Array:
    return ops.attention_scores(*call.heads()[:2])


def rounding(p: Precision, qkv: Measured, n_head: int, heads: slice = EVERY) -> Measured:
    """q·k / √K: a sum of K products; q and k may each be scaled, and so rounded, beforehand."""
    q_HTK, k_HSK, _ = (x[heads] for x in ops.split_heads(qkv.value, n_head))
    value_HTS = ops.attention_scores(q_HTK, k_HSK)
    k_HKS, size = k_HSK.transpose(0, 2, 1), q_HTK.shape[-1]
    spread_HTS = sum_of_squares(q_HTK, k_HKS) / size
    variance = (size * p.u_sum**2 + 2 * p.u**2) * spread_HTS
    # The product, the scale and the sum with a mask, each stored once.
    variance += (size * p.u_sum**2 + 3 * p.u**2) * value_HTS**2
    if qkv.budget is not None:
        dq_HTK, dk_HSK, _ = (x[heads] for x in ops.split_heads(qkv.budget, n_head))
        variance += sum_of_squares(dq_HTK, k_HKS) / size
        variance += sum_of_squares(q_HTK, dk_HSK.transpose(0, 2, 1)) / size
    return measured(p, value_HTS, variance)


def back(step: Step, d_HTS: Array) -> Back:
    q_HTK, k_HSK, _ = step.heads()
    d_HTS = d_HTS / float(np.sqrt(q_HTK.shape[-1]))
    return Back((joined(d_HTS @ k_HSK, d_HTS.transpose(0, 2, 1) @ q_HTK, None),))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), at.config.n_head, at.heads)


OPERATION = Operation(value, budget, back, by_head=True)
