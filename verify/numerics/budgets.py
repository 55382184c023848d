"""How large the rounding error of one operation may be, element by element.

A budget is the scale of a sub-Gaussian bound: with every elementary rounding an independent
variable of mean zero and magnitude at most u, the error of an element exceeds λ budgets with
probability at most 2 exp(-λ²/2). That is the model of Higham and Mary (2019, "A new approach to
probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), theorem 3.1), kept as a
standard deviation rather than multiplied by λ, so that budgets of independent steps add in
squares. No constant here is fitted to a failure; ``docs/numerics.md`` derives each formula and
shows the distribution of the scores.

Every operation takes values together with the budgets that they already carry (zero for a tensor
that the port has shown) and returns the oracle's value in float64 with its budget. Sites that a
port does not show are bridged in this way: a fused attention is scores, pattern and mix in one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.parallel import both
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops

Floats = NDArray[np.floating]

#: Error of tanh and rsqrt in units of u: between 1 (SLEEF, glibc) and 4 (Eigen's rational tanh,
#: CUDA's single-precision functions).
FUNCTION_ULP = 4.0
#: How many budgets an element may deviate before first-order propagation through an exponential
#: is no longer trusted; used to keep the bound valid where scores are large and u is coarse.
LARGE_DEVIATION = 6.0
#: All heads. Some of them at a time are as good, since heads know nothing of each other.
EVERY = slice(None)


@dataclass(frozen=True)
class Measured:
    """A value in float64 and its budget (None where the port itself has shown the value)."""

    value: Floats
    budget: Floats | None = None


def shown(value: NDArray[np.floating]) -> Measured:
    """A tensor that the port has shown: what follows is judged from exactly this, and a copy of
    it, because the port may overwrite its own."""
    return Measured(np.array(value, np.float64))


def embed(p: Precision, tokens_T: NDArray[np.integer], wte_VD: Floats, wpe_PD: Floats) -> Measured:
    """One addition, one rounding."""
    value_TD = ops.embed(tokens_T, wte_VD, wpe_PD)
    return _measured(p, value_TD, (p.u * value_TD) ** 2)


def add(p: Precision, x: Measured, y: Measured) -> Measured:
    """The residual sum: one rounding."""
    value = x.value + y.value
    variance = (p.u * value) ** 2
    for term in (x, y):
        if term.budget is not None:
            variance += term.budget**2
    return _measured(p, value, variance)


def linear(
    p: Precision,
    x: Measured,
    w_io: Floats,
    b_o: Floats | float,
    narrow_io: NDArray[np.floating] | None = None,
) -> Measured:
    """x W + b. ``narrow_io`` is W in float32, where it is at hand: the budget needs no more.

    The error of a sum of n products is Σ δ_i s_i over its partial sums s_i. With terms of mean m
    and spread around it, s_i is i m plus a random walk, and the accumulator may begin with the
    bias instead of zero (BLAS: y ← A x + β y), so Σ s_i² ≤ n (Σ x² w² + (x W)² + b²), whatever the
    order of summation. Where both operands are rounded first, each term errs by itself, which is
    2 u² Σ x² w² more. Two roundings in the stored format follow, because a bias may be added to a
    product that has been stored.
    """
    squared_io = w_io if narrow_io is None else narrow_io
    variance, product_To = both(
        lambda: _sum_of_squares(x.value, squared_io), lambda: x.value @ w_io
    )
    value_To = product_To + b_o
    n = w_io.shape[0]
    operands_To = 2 * p.u_operand**2 * variance if p.u_operand else None
    variance += product_To**2
    variance += np.square(b_o)
    variance *= n * p.u_sum**2
    if operands_To is not None:
        variance += operands_To
    variance += p.u**2 * (product_To**2 + value_To**2)
    if x.budget is not None:
        variance += _sum_of_squares(x.budget, squared_io)
    return _measured(p, value_To, variance)


def unembed(p: Precision, x: Measured, wte_VD: NDArray[np.floating]) -> Measured:
    """The product with wte transposed; any slice of the vocabulary will do for ``wte_VD``."""
    return linear(p, x, np.asarray(wte_VD, np.float64).T, 0.0, wte_VD.T)


def layer_norm(p: Precision, x: Measured, g_D: Floats, b_D: Floats) -> Measured:
    """First-order running error of mean, variance, reciprocal root, gain and bias.

    The error of the mean is common to a row: it matters most to elements that lie close to the
    mean, whose relative error is unbounded. Both ways of centring are covered, (x - μ) r and
    x r - μ r, hence the terms in x² and μ².
    """
    x_TD, n = x.value, x.value.shape[-1]
    value_TD = ops.layer_norm(x_TD, g_D, b_D)
    mean_T1 = np.mean(x_TD, axis=-1, keepdims=True)
    centred_TD = x_TD - mean_T1
    squares_TD = centred_TD**2
    variance_T1 = np.mean(squares_TD, axis=-1, keepdims=True)
    r_T1 = 1.0 / np.sqrt(variance_T1 + ops.LAYER_NORM_EPSILON)

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
    return _measured(p, value_TD, variance)


def gelu(p: Precision, x: Measured) -> Measured:
    """First-order running error through 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).

    For x well below zero 1 + tanh cancels: an absolute error of a few u remains, multiplied by x.
    """
    value = ops.gelu(x.value)
    cubic = ops.GELU_CUBIC * (x.value * x.value * x.value)
    inner = ops.SQRT_2_OVER_PI * (x.value + cubic)
    tanh = np.tanh(inner)
    # x³ is two products or one pow, then the constant: four roundings. The sum and √(2/π): two.
    inner_error2 = p.u**2 * ((4 * ops.SQRT_2_OVER_PI * cubic) ** 2 + 2 * inner**2)
    function = FUNCTION_ULP * p.u_sum + p.u
    tanh_error2 = ((1 - tanh**2) ** 2) * inner_error2 + (function * tanh) ** 2
    one_plus_error2 = tanh_error2 + (p.u * (1 + tanh)) ** 2
    variance = (0.5 * x.value) ** 2 * one_plus_error2 + 2 * (p.u * value) ** 2
    if x.budget is not None:
        # |GELU'| ≤ 1.13 everywhere.
        variance += (1.13 * x.budget) ** 2
    return _measured(p, value, variance)


def scores(p: Precision, qkv: Measured, n_head: int, heads: slice = EVERY) -> Measured:
    """q·k / √K: a sum of K products; q and k may each be scaled, and so rounded, beforehand."""
    q_HTK, k_HSK, _ = (x[heads] for x in ops.split_heads(qkv.value, n_head))
    value_HTS = ops.attention_scores(q_HTK, k_HSK)
    k_HKS, size = k_HSK.transpose(0, 2, 1), q_HTK.shape[-1]
    spread_HTS = _sum_of_squares(q_HTK, k_HKS) / size
    variance = (size * p.u_sum**2 + 2 * p.u**2) * spread_HTS
    # The product, the scale and the sum with a mask, each stored once.
    variance += (size * p.u_sum**2 + 3 * p.u**2) * value_HTS**2
    if qkv.budget is not None:
        dq_HTK, dk_HSK, _ = (x[heads] for x in ops.split_heads(qkv.budget, n_head))
        variance += _sum_of_squares(dq_HTK, k_HKS) / size
        variance += _sum_of_squares(q_HTK, dk_HSK.transpose(0, 2, 1)) / size
    return _measured(p, value_HTS, variance)


def pattern(p: Precision, scores: Measured) -> Measured:
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
    return _measured(p, value_HTS, squares_HTS * relative2_HTS)


def mix(
    p: Precision, pattern: Measured, qkv: Measured, n_head: int, heads: slice = EVERY
) -> Measured:
    """Weighted sum of values: T products. A fused kernel stores the weights before it divides.

    The pattern is that of ``heads``, and so is the result.
    """
    v_HSK = ops.split_heads(qkv.value, n_head)[2][heads]
    value_TD = ops.attention_mix(pattern.value, v_HSK)
    t = len(value_TD)
    spread_TD = _heads_side_by_side(_sum_of_squares(pattern.value, v_HSK))
    variance = (t * p.u_sum**2 + p.u**2) * spread_TD + (t * p.u_sum**2 + 2 * p.u**2) * value_TD**2
    if pattern.budget is not None:
        variance += _heads_side_by_side(_sum_of_squares(pattern.budget, v_HSK))
    if qkv.budget is not None:
        dv_HSK = ops.split_heads(qkv.budget, n_head)[2][heads]
        variance += _heads_side_by_side(_sum_of_squares(pattern.value, dv_HSK))
    return _measured(p, value_TD, variance)


def _measured(p: Precision, value: Floats, variance: Floats) -> Measured:
    """Close an operation: nothing is known below the format's smallest step."""
    if p.u == 2.0**-53:
        # The oracle computes in float64 as well, and its own error is of the same size.
        variance = 2.0 * variance
    return Measured(value, np.maximum(np.sqrt(variance), p.tiny))


def _exponential_growth(variance: Floats) -> Floats:
    """Square of the relative error of exp(z), for an error of z with this variance.

    For small errors they are the same. For large ones exp grows faster than its tangent; the
    budget is then what makes λ = 6 budgets reach the exponential's value at λ = 6.
    """
    deviation = LARGE_DEVIATION * np.sqrt(variance)
    return (np.expm1(np.minimum(deviation, 300.0)) / LARGE_DEVIATION) ** 2


def _sum_of_squares(x: NDArray[np.floating], w: NDArray[np.floating]) -> Floats:
    """x² @ w², in float32: a budget needs no more than a few digits."""
    x32, w32 = np.asarray(x, np.float32), np.asarray(w, np.float32)
    total = (x32 * x32) @ (w32 * w32)
    if np.isfinite(total).all():
        return np.asarray(total, np.float64)
    # Some square is beyond float32: bring both sides to at most 1 first.
    x_scale, w_scale = _scale(x), _scale(w)
    x32, w32 = (np.asarray(a / s, np.float32) for a, s in ((x, x_scale), (w, w_scale)))
    return np.asarray((x32 * x32) @ (w32 * w32), np.float64) * (x_scale * w_scale) ** 2


def _scale(x: NDArray[np.floating]) -> float:
    largest = float(np.max(np.abs(x), initial=0.0))
    return largest if 0.0 < largest < np.inf else 1.0


def _heads_side_by_side(x_HTK: Floats) -> Floats:
    h, t, k = x_HTK.shape
    return x_HTK.transpose(1, 0, 2).reshape(t, h * k)


#: Operation name → function. The arguments differ, and ``gpt_verify.numerics.local`` supplies them.
OPERATIONS: dict[str, Callable[..., Measured]] = {
    "embed": embed,
    "add": add,
    "linear": linear,
    "unembed": unembed,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "scores": scores,
    "pattern": pattern,
    "mix": mix,
}
