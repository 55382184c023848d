"""Each operation of the oracle against its closed form.

The expected values come from exact integers, fractions, fifty-digit decimals and ``math``, not from
the formulas under test. Where they are integers, so that nothing rounds, equality is exact.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_agrees, few
from rounding import gamma

from gpt_verify.graph.operations import layer_norm as op_layer_norm
from gpt_verify.numerics.budgets import shown
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.numerics.scores import limit_max
from gpt_verify.reference import ops

#: Unit roundoff of float64.
U = 2.0**-53
DIGITS = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
whole = st.integers(-50, 50)


def integers(seed: int, *shape: int) -> np.ndarray:
    """Small whole numbers in float64: sums and products of these are exact."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float64)


# GELU


def exact_gelu(x: float) -> tuple[Decimal, Decimal]:
    """(x σ(2y), tanh y) with y = √(2/π) (x + 0.044715 x³), to fifty digits."""
    with localcontext(prec=DIGITS):
        y = (2 / PI).sqrt() * (Decimal(x) + Decimal("0.044715") * Decimal(x) ** 3)
        e = (2 * y).exp()
        return Decimal(x) * e / (1 + e), (e - 1) / (e + 1)


def gelu_error(x: float, t: float) -> float:
    """What rounding does to the GELU, to first order, and no more than that in all, because no sum
    here has more than twenty roundings; t is the tanh in it."""
    y = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    # Seven roundings make y, a vector tanh has up to 4 ulp (of 2 U), three roundings follow.
    error = (1 - t * t) * 7 * U * abs(y) + 8 * U * abs(t) + 3 * U * (1 + t)
    return (1 + gamma(20)) * 0.5 * abs(x) * error


@few
@given(st.floats(-20, 20, allow_subnormal=False))
def test_gelu_to_fifty_digits(x):
    expected, tanh = exact_gelu(x)
    found = Decimal(float(ops.gelu(np.array(x))))
    assert abs(found - expected) <= Decimal(gelu_error(x, float(tanh)))


def test_gelu_is_zero_at_zero_with_slope_one_half():
    assert ops.gelu(np.array([0.0])) == 0
    # tanh of 2^-60 is lost beside 1, so that the slope is exact.
    assert ops.gelu(np.array([2.0**-60, -(2.0**-60)])).tolist() == [2.0**-61, -(2.0**-61)]


@few
@given(st.floats(-30, 30, allow_subnormal=False))
def test_gelu_of_x_less_that_of_minus_x_is_x(x):
    up, down = ops.gelu(np.array([x, -x]))
    t = math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    # Each is off by its own error, and the two differences round.
    assert abs(up - down - x) <= gelu_error(x, t) + gelu_error(-x, -t) + 2 * U * abs(x)


def test_the_constants_of_gelu_can_be_read_from_two_of_its_values():
    """atanh(2 gelu(x) / x - 1) = c (x + a x³): two values of x give c and a."""
    at = {x: math.atanh(2 * float(ops.gelu(np.array(x))) / x - 1) for x in (1.0, 2.0)}
    ratio = at[2.0] / at[1.0]  # (2 + 8 a) / (1 + a)
    cubic = (ratio - 2) / (8 - ratio)
    assert_agrees(cubic, 0.044715, "cubic coefficient")
    assert_agrees((at[1.0] / (1 + cubic)) ** 2 * math.pi, 2.0, "√(2/π)")


def test_gelu_is_the_approximation_and_not_the_error_function():
    """The two differ by at most 4.7e-4: where that is, and not more and not less."""
    x = np.arange(-6 * 1024, 6 * 1024 + 1) / 1024
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    assert 4.7e-4 < np.abs(ops.gelu(x) - exact).max() < 4.8e-4


def test_gelu_saturates():
    assert ops.gelu(np.array([40.0, 1e30])).tolist() == [40.0, 1e30]
    assert ops.gelu(np.array([-40.0, -1e30])).tolist() == [0.0, 0.0]


# Softmax


def test_softmax_of_logarithms_is_what_they_are_logarithms_of():
    p = np.array([[1 / 2, 1 / 3, 1 / 6], [1 / 1000, 1 / 4, 749 / 1000]])
    assert_agrees(ops.softmax(np.log(p)), p)
    assert_agrees(ops.softmax(np.log(p) - 3.5), p)
    assert_agrees(ops.softmax(np.array([0.0, math.log(3)])), [1 / 4, 3 / 4])


@few
@given(st.lists(whole, min_size=1, max_size=6), st.integers(-(10**6), 10**6))
def test_softmax_does_not_see_a_shift(row, shift):
    x = np.array(row, np.float64)  # whole numbers, so that the shift itself does not round
    assert np.array_equal(ops.softmax(x + shift), ops.softmax(x))
    assert_agrees(math.fsum(ops.softmax(x)), 1.0)


def test_softmax_neither_overflows_nor_hides_what_underflows():
    assert ops.softmax(np.array([1e4, 0.0, -1e4])).tolist() == [1, 0, 0]
    assert ops.softmax(np.array([-np.inf, -2.0])).tolist() == [0, 1]
    assert ops.softmax(np.array([-1e4, -1e4])).tolist() == [0.5, 0.5]


# Layer norm


def exact_layer_norm(row: list[int], scale: Fraction) -> list[float]:
    """(x - mean) / √(variance + 1e-5) of ``scale`` times whole numbers, without rounding before
    the end."""
    x = [scale * v for v in row]
    mean = sum(x, Fraction(0)) / len(x)
    variance = sum(((v - mean) ** 2 for v in x), Fraction(0)) / len(x)
    inside = variance + Fraction(1, 100_000)
    with localcontext(prec=DIGITS):
        root = (Decimal(inside.numerator) / Decimal(inside.denominator)).sqrt()
        return [float(Decimal((v - mean).numerator) / (v - mean).denominator / root) for v in x]


@few
@given(st.lists(whole, min_size=2, max_size=9), st.integers(-8, 8))
def test_layer_norm_in_exact_fractions(row, exponent):
    """Small scales show ε, which large ones hide."""
    x = np.array([row], np.float64) * 2.0**exponent
    ones, zeros = np.ones(len(row)), np.zeros(len(row))
    expected = [exact_layer_norm(row, Fraction(2) ** exponent)]
    budget = op_layer_norm.rounding(FLOAT64, shown(x), ones, zeros).budget
    found = ops.layer_norm(x, ones, zeros)
    assert (np.abs(found - expected) <= limit_max(len(row)) * budget).all()


@pytest.mark.parametrize("half", [2.0, 1.0, 0.125, 2.0**-8, 2.0**-20])
def test_layer_norm_of_two_elements(half):
    """(a, b) → ±d / √(d² + ε) with d = (a - b) / 2; the unbiased variance would be 2 d²."""
    x = np.array([[1 + half, 1 - half], [1 - half, 1 + half]])
    one = half / math.sqrt(half * half + 1e-5)
    assert_agrees(ops.layer_norm(x, np.ones(2), np.zeros(2)), [[one, -one], [-one, one]])


def test_the_epsilon_of_layer_norm_can_be_read_from_its_values():
    """The mean square of the result is variance / (variance + ε)."""
    x = np.array([[1.0, -1.0, 1.0, -1.0]]) / 256
    square = float(np.mean(ops.layer_norm(x, np.ones(4), np.zeros(4)) ** 2))
    assert_agrees((1 / square - 1) * 256.0**-2, 1e-5)


def test_layer_norm_of_equal_elements_is_its_bias():
    b = np.array([0.5, -3.0, 7.0])
    assert np.array_equal(ops.layer_norm(np.full((2, 3), 9.0), np.full(3, 5.0), b), [b, b])


@few
@given(st.lists(whole, min_size=4, max_size=4), st.integers(-(10**6), 10**6))
def test_layer_norm_does_not_see_a_shift(row, shift):
    x, b = np.array([row], np.float64), np.arange(4.0)  # a mean of four whole numbers is exact
    g = np.array([1.0, 2.0, -1.0, 0.5])
    assert np.array_equal(ops.layer_norm(x + shift, g, b), ops.layer_norm(x, g, b))


def test_gain_multiplies_and_bias_is_added_channel_by_channel():
    x = integers(0, 5, 4)
    g, b = integers(1, 4), integers(2, 4)
    plain = ops.layer_norm(x, np.ones(4), np.zeros(4))
    expected = [[plain[t, d] * g[d] + b[d] for d in range(4)] for t in range(5)]
    assert np.array_equal(ops.layer_norm(x, g, b), expected)


# The products


def test_linear_is_the_sum_over_the_first_axis_of_the_matrix():
    x, w, b = integers(0, 5, 3), integers(1, 3, 7), integers(2, 7)
    expected = [
        [b[o] + sum(x[t, i] * w[i, o] for i in range(3)) for o in range(7)] for t in range(5)
    ]
    assert np.array_equal(ops.linear(x, w, b), expected)


def test_heads_lie_side_by_side_within_q_then_k_then_v():
    t, h, k = 5, 3, 4
    x = np.arange(t * 3 * h * k, dtype=np.float64).reshape(t, 3 * h * k)
    parts = ops.split_heads(x, h)
    assert [part.shape for part in parts] == [(h, t, k)] * 3
    for which, part in enumerate(parts):
        for head, position, channel in np.ndindex(h, t, k):
            column = which * h * k + head * k + channel
            assert part[head, position, channel] == x[position, column]


@pytest.mark.parametrize(("size", "root"), [(1, 1), (4, 2), (9, 3)])
def test_scores_are_dot_products_over_the_root_of_the_head_size(size, root):
    q, k = integers(0, 3, 5, size), integers(1, 3, 5, size)
    found = ops.attention_scores(q, k)
    for head, target, source in np.ndindex(3, 5, 5):
        dot = sum(q[head, target, c] * k[head, source, c] for c in range(size))
        assert abs(found[head, target, source] - dot / root) <= 2 * U * abs(dot / root)


def test_equal_scores_average_over_what_came_before():
    pattern = ops.causal_softmax(np.full((2, 5, 5), 3.25))
    for head, target, source in np.ndindex(2, 5, 5):
        expected = 1 / (target + 1) if source <= target else 0
        assert pattern[head, target, source] == expected


def test_nothing_flows_from_the_future_whatever_the_scores():
    scores = np.where(np.tri(5, dtype=bool), -1e4, 1e4) * np.ones((3, 1, 1))
    pattern = ops.causal_softmax(scores + integers(0, 3, 5, 5))
    future = ~np.tri(5, dtype=bool)
    assert (pattern[:, future] == 0).all()
    assert (pattern[:, 0, 0] == 1).all()
    assert_agrees(pattern.sum(axis=-1), np.ones((3, 5)))


def test_one_huge_score_copies_one_value():
    t, source_of = 5, [0, 0, 2, 1, 3]
    scores = np.zeros((2, t, t))
    for target, source in enumerate(source_of):
        scores[:, target, source] = 1e4
    v = integers(0, 2, t, 3)
    mix = ops.attention_mix(ops.causal_softmax(scores), v)
    assert mix.shape == (t, 6)
    for target, head, channel in np.ndindex(t, 2, 3):
        assert mix[target, head * 3 + channel] == v[head, source_of[target], channel]


def test_mix_is_the_sum_over_sources():
    pattern, v = integers(0, 2, 5, 5), integers(1, 2, 5, 3)
    found = ops.attention_mix(pattern, v)
    for target, head, channel in np.ndindex(5, 2, 3):
        expected = sum(pattern[head, target, s] * v[head, s, channel] for s in range(5))
        assert found[target, head * 3 + channel] == expected


def test_embed_adds_the_row_of_the_token_and_the_row_of_the_position():
    wte, wpe = integers(0, 11, 4), 100 * integers(1, 7, 4)
    tokens = [3, 10, 0, 3, 7]
    expected = [[wte[v, d] + wpe[p, d] for d in range(4)] for p, v in enumerate(tokens)]
    assert np.array_equal(ops.embed(np.array(tokens), wte, wpe), expected)


def test_unembed_is_the_dot_product_with_the_row_of_each_token():
    x, wte = integers(0, 5, 4), integers(1, 11, 4)
    expected = [[sum(x[t, d] * wte[v, d] for d in range(4)) for v in range(11)] for t in range(5)]
    assert np.array_equal(ops.unembed(x, wte), expected)


# Precision


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operations_keep_the_precision_of_their_input(dtype):
    x, g, w = (integers(i, *shape).astype(dtype) for i, shape in enumerate([(5, 4), (4,), (4, 4)]))
    heads = integers(3, 2, 5, 3).astype(dtype)
    results = {
        "gelu": ops.gelu(x),
        "softmax": ops.softmax(x),
        "layer_norm": ops.layer_norm(x, g, g),
        "linear": ops.linear(x, w, g),
        "scores": ops.attention_scores(heads, heads),
        "causal_softmax": ops.causal_softmax(ops.attention_scores(heads, heads)),
        "mix": ops.attention_mix(np.ones((2, 5, 5), dtype), heads),
        "embed": ops.embed(np.array([0, 1]), x, x, dtype),
        "unembed": ops.unembed(x, w),
    }
    assert {name: value.dtype for name, value in results.items() if value.dtype != dtype} == {}


def test_float32_rounds_where_float32_does():
    """2^24 + 1 is no float32: what was computed in float64 and cast afterwards would keep the 1."""
    row, column = np.array([[2.0**24, 1.0]], np.float32), np.ones((2, 1), np.float32)
    bias = np.array([-(2.0**24)], np.float32)
    assert ops.linear(row, column, bias).tolist() == [[0.0]]
    assert ops.linear(row.astype(float), column.astype(float), bias.astype(float)) == [[1.0]]
