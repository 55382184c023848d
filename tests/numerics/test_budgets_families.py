"""Budgets of the operations that GPT-2 has not, against torch's arithmetic, as ports write it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_budgets import EVERY, HEADS, Case, D, Pairs, T, ratio
from torch.nn import functional as F

from gpt_verify.graph.operations import (
    alibi,
    gelu_exact,
    glu,
    pattern,
    relu,
    rms_norm,
    rope,
    routing,
    silu,
    soft_cap,
)
from gpt_verify.numerics.budgets import Measured, shown
from gpt_verify.numerics.precision import FLOAT64, Precision
from gpt_verify.reference.architecture import Experts, Norm, Rope, Scaling
from gpt_verify.reference.positions import frequencies, slopes


def _gain(case: Case, middle: float) -> np.ndarray:
    g = case.draw(D, scale=0.3) + middle
    return np.asarray(g if case.p is FLOAT64 else case.p.round(g), np.float64)


def _wide(case: Case, x: torch.Tensor) -> torch.Tensor:
    """In float32, which families ask for on the way; in float64 where the run is."""
    return x if case.p is FLOAT64 else x.float()


def llama_norm(case: Case) -> Pairs:
    """x̂ is rounded before the gain (Llama), after it (gpt-oss), or torch does it at once."""
    x, g, epsilon = case.stream(), _gain(case, 1), 1e-6
    expected = rms_norm.rounding(case.p, shown(x), g, Norm(rms=True, epsilon=epsilon))
    x_, g_ = case.torch(x), case.torch(g)
    h = _wide(case, x_)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + epsilon)
    after = (_wide(case, g_) * h).to(x_.dtype)
    return [
        (g_ * h.to(x_.dtype), expected),
        (after, expected),
        (F.rms_norm(x_, (D,), g_, epsilon), expected),
    ]


def gemma_norm(case: Case) -> Pairs:
    """The gain is 1 + g, in float32, or in the format of g."""
    x, g, epsilon = case.stream(), _gain(case, 0), 1e-6
    norm = Norm(rms=True, epsilon=epsilon, plus_one=True)
    expected = rms_norm.rounding(case.p, shown(x), g, norm)
    x_, g_ = case.torch(x), case.torch(g)
    h = _wide(case, x_)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + epsilon)
    wide = (h * (1.0 + _wide(case, g_))).to(x_.dtype)
    return [(wide, expected), (h.to(x_.dtype) * (1 + g_), expected)]


def norm_of_heads(case: Case) -> Pairs:
    x, g, k = case.draw(T, D), _gain(case, 1)[: D // HEADS], D // HEADS
    expected = rms_norm.rounding(case.p, shown(x), g, Norm(rms=True, epsilon=1e-6))
    x_, g_ = case.torch(x).view(T, HEADS, k), case.torch(g)
    return [(F.rms_norm(x_, (k,), g_, 1e-6).reshape(T, D), expected)]


def _rope(case: Case, how: Rope) -> Pairs:
    """As GPT-NeoX and Llama do it in transformers: the table in float32, stored in the format."""
    x, k = case.draw(T, D), D // HEADS
    expected = rope.rounding(case.p, shown(x), how, HEADS)
    wide = torch.float64 if case.p is FLOAT64 else torch.float32
    x_ = case.torch(x).view(T, HEADS, k).transpose(0, 1)
    if how.scaling is None:
        exponent = torch.arange(0, how.size, 2).to(wide) / how.size
        inverse = 1.0 / (how.theta**exponent)
    else:
        inverse = torch.from_numpy(frequencies(how)).to(wide)
    angle = torch.arange(T).to(wide)[:, None] * inverse
    attention = how.scaling.attention if how.scaling else 1.0
    cos, sin = ((f(angle) * attention).to(x_.dtype) for f in (torch.cos, torch.sin))
    turned = x_.clone()
    pairs = (slice(0, how.size, 2), slice(1, how.size, 2)) if how.pairs else None
    a, b = pairs or (slice(0, how.size // 2), slice(how.size // 2, how.size))
    turned[..., a] = x_[..., a] * cos - x_[..., b] * sin
    turned[..., b] = x_[..., b] * cos + x_[..., a] * sin
    return [(turned.transpose(0, 1).reshape(T, D), expected)]


def rope_in_halves(case: Case) -> Pairs:
    return _rope(case, Rope(10_000.0, D // HEADS))


def rope_in_pairs_of_a_part(case: Case) -> Pairs:
    return _rope(case, Rope(500.0, 4, pairs=True))


def rope_scaled(case: Case) -> Pairs:
    return _rope(case, Rope(150.0, D // HEADS, scaling=Scaling("yarn", 8.0, 16, attention=1.2)))


def exact_gelu(case: Case) -> Pairs:
    x = case.draw(T, D, scale=2.0)
    expected = gelu_exact.rounding(case.p, shown(x))
    x_ = case.torch(x)
    steps = 0.5 * x_ * (1 + torch.erf(x_ * math.sqrt(0.5)))
    return [(F.gelu(x_), expected), (steps, expected)]


def swish(case: Case) -> Pairs:
    x = case.draw(T, D, scale=3.0)
    expected = silu.rounding(case.p, shown(x))
    x_ = case.torch(x)
    pairs = [(F.silu(x_), expected), (x_ * torch.sigmoid(x_), expected)]
    if case.p.name != "float16":  # whose exponential overflows from -11 on
        pairs.append((x_ / (1 + torch.exp(-x_)), expected))
    return pairs


def rectifier(case: Case) -> Pairs:
    x = case.draw(T, D)
    return [(F.relu(case.torch(x)), relu.rounding(case.p, shown(x)))]


def swiglu(case: Case) -> Pairs:
    gate, up = case.draw(T, D, scale=2.0), case.draw(T, D, scale=case.scale)
    expected = glu.rounding(case.p, "silu", shown(gate), shown(up))
    return [(F.silu(case.torch(gate)) * case.torch(up), expected)]


def geglu(case: Case) -> Pairs:
    gate, up = case.draw(T, D, scale=2.0), case.draw(T, D, scale=case.scale)
    expected = glu.rounding(case.p, "gelu", shown(gate), shown(up))
    return [(F.gelu(case.torch(gate), approximate="tanh") * case.torch(up), expected)]


def clamped(case: Case) -> Pairs:
    gate, up = case.draw(T, D, scale=4.0), case.draw(T, D, scale=4.0)
    expected = glu.rounding(case.p, "swish_clamped", shown(gate), shown(up))
    g, u = case.torch(gate).clamp(max=7.0), case.torch(up).clamp(min=-7.0, max=7.0)
    return [((u + 1) * (g * torch.sigmoid(g * 1.702)), expected)]


def capped(case: Case) -> Pairs:
    x, cap = case.draw(T, D, scale=4.0), 5.0
    expected = soft_cap.rounding(case.p, shown(x), cap)
    return [(torch.tanh(case.torch(x) / cap) * cap, expected)]


def _scores(case: Case) -> np.ndarray:
    return case.draw(HEADS, T, T, scale=3.0)


def sloped(case: Case) -> Pairs:
    """Press et al.'s distance."""
    scores = _scores(case)
    expected = alibi.rounding(case.p, shown(scores), HEADS)
    distance = (torch.arange(T)[:, None] - torch.arange(T)).clamp(min=0)
    slope = case.torch(slopes(HEADS))[:, None, None]
    return [(case.torch(scores) - slope * distance.to(slope.dtype), expected)]


def windowed_with_sinks(case: Case) -> Pairs:
    """As gpt-oss does it: less the largest, and in the format, not in float32."""
    scores, sinks, window = _scores(case), case.draw(HEADS), 5
    expected = pattern.rounding(case.p, shown(scores), window, sinks)
    t, s = torch.arange(T)[:, None], torch.arange(T)
    hidden = (s > t) | (t - s >= window)
    masked = case.torch(scores).masked_fill(hidden, -math.inf)
    sink = case.torch(sinks)[:, None, None].expand(HEADS, T, 1)
    together = torch.cat([masked, sink], dim=-1)
    together = together - together.max(dim=-1, keepdim=True).values
    plain = torch.softmax(torch.cat([masked, sink], dim=-1), dim=-1)[..., :-1]
    return [(torch.softmax(together, dim=-1)[..., :-1], expected), (plain, expected)]


def routed(case: Case) -> Pairs:
    """Mixtral's, and gpt-oss's: the same function in another order."""
    router, kind = case.draw(T, 8, scale=2.0), Experts(8, 3)
    expected = routing.rounding(case.p, shown(router), kind)
    r = case.torch(router)
    whole = torch.softmax(_wide(case, r), dim=-1)
    top, which = torch.topk(whole, 3, dim=-1)
    mixtral = torch.zeros_like(whole).scatter(1, which, top / top.sum(-1, keepdim=True))
    values, which = torch.topk(r, 3, dim=-1)
    oss = torch.zeros_like(r).scatter(1, which, torch.softmax(values, dim=-1))
    return [(mixtral.to(r.dtype), expected), (oss, expected)]


def routed_without_a_sum(case: Case) -> Pairs:
    router, kind = case.draw(T, 8, scale=2.0), Experts(8, 3, renormalised=False)
    expected = routing.rounding(case.p, shown(router), kind)
    whole = torch.softmax(_wide(case, case.torch(router)), dim=-1)
    top, which = torch.topk(whole, 3, dim=-1)
    made = torch.zeros_like(whole).scatter(1, which, top).to(case.torch(router).dtype)
    return [(made, expected)]


OPERATIONS: list[Callable[[Case], Pairs]] = [
    llama_norm,
    gemma_norm,
    norm_of_heads,
    rope_in_halves,
    rope_in_pairs_of_a_part,
    rope_scaled,
    exact_gelu,
    swish,
    rectifier,
    swiglu,
    geglu,
    clamped,
    capped,
    sloped,
    windowed_with_sinks,
    routed,
    routed_without_a_sum,
]
params = [
    pytest.mark.parametrize("p", EVERY, ids=lambda p: p.name),
    pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.__name__),
]


@params[0]
@params[1]
def test_correct_arithmetic_stays_below(operation: Callable[[Case], Pairs], p: Precision) -> None:
    worst: list[float] = []
    for seed in range(40):
        found = [ratio(got, expected) for got, expected in operation(Case(p, seed))]
        worst = [max(pair) for pair in zip(found, worst or found, strict=True)]
    assert max(worst) <= 1.0, worst


@params[0]
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o is not rectifier])
def test_a_few_budgets_are_caught(operation: Callable[[Case], Pairs], p: Precision) -> None:
    """The same correct arithmetic, off by four budgets in every second element, or by twelve in
    one."""
    for seed in range(5):
        got, expected = operation(Case(p, seed))[0]
        wide = got.to(torch.float64)
        budget = torch.from_numpy(np.broadcast_to(expected.budget, expected.value.shape).copy())
        sign = torch.from_numpy(np.random.default_rng(seed).choice([-4.0, 4.0], wide.shape))
        assert ratio(wide + sign * budget, expected) > 1.0
        one = wide.clone()
        one.view(-1)[0] += 12.0 * budget.view(-1)[0]
        assert ratio(one, expected) > 1.0


@params[0]
def test_where_nothing_is_rounded_any_difference_is_caught(p: Precision) -> None:
    (got, expected), *_ = rectifier(Case(p, 0))
    wide = got.to(torch.float64)
    wide.view(-1)[3] += p.u * 1e-3 * wide.abs().max()
    assert ratio(wide, expected) > 1.0


@pytest.mark.parametrize("cap", [5.0, 50.0])
def test_a_budget_goes_through_a_cap(cap: float) -> None:
    x = np.linspace(-60, 60, 41)[None]
    error = np.full_like(x, 1e-3)
    found = soft_cap.rounding(EVERY[1], Measured(x, error), cap)
    assert found.budget is not None
    moved = np.abs(soft_cap.rounding(EVERY[1], shown(x + 1e-3), cap).value - found.value)
    assert (moved <= found.budget).all()
