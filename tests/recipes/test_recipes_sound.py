"""Whatever an engine does in float32, in whatever order, lies within what the recipe allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import checkpoint

from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.recipes.identify import Identification
from gpt_verify.reference import Config
from gpt_verify.sites import sites

Array = Any
F = np.float32
HALVES = ("bfloat16", "float16")
CONFIG = Config(n_vocab=29, n_ctx=23, n_embd=96, n_head=3, n_layer=1)
SOURCE = checkpoint(CONFIG)


def root(x: Array) -> Array:
    return F(1) / np.sqrt(x + F(1e-5))


def two_passes(x: Array, g: Array, b: Array) -> Array:
    c = x - x.mean(-1, keepdims=True)
    return c * root((c * c).mean(-1, keepdims=True)) * g + b


def running(x: Array, g: Array, b: Array) -> Array:
    """Welford's way, one channel after the other."""
    mean, m2 = np.zeros((len(x), 1), F), np.zeros((len(x), 1), F)
    for i in range(x.shape[1]):
        d = x[:, i : i + 1] - mean
        mean = mean + d / F(i + 1)
        m2 = m2 + d * (x[:, i : i + 1] - mean)
    return (x - mean) * (root(m2 / F(x.shape[1])) * g) + b


def scaled_and_shifted(x: Array, g: Array, b: Array) -> Array:
    """x r - μ r, as torch's kernel for the CPU."""
    mean = x.mean(-1, keepdims=True)
    r = root(((x - mean) ** 2).mean(-1, keepdims=True))
    return (x * r + -mean * r) * g + b


def pairwise(x: Array, w: Array, b: Array) -> Array:
    return x @ w + b


def from_the_bias_on(x: Array, w: Array, b: Array) -> Array:
    """Term by term, the last first."""
    made = np.tile(b, (len(x), 1))
    for i in reversed(range(x.shape[1])):
        made = made + x[:, i : i + 1] * w[i]
    return made


def divided(x: Array) -> Array:
    e = np.exp(_shift(x))
    return e / e.sum(-1, keepdims=True)


def times_reciprocal(x: Array) -> Array:
    e = np.exp2(_shift(x) * F(np.log2(np.e)))
    return e * (F(1) / e.cumsum(-1, dtype=F)[..., -1:])


def _shift(x: Array) -> Array:
    seen = np.where(np.tri(x.shape[-1], dtype=bool), x, F(-np.inf))
    return seen - seen.max(-1, keepdims=True)


def tanh_form(x: Array) -> Array:
    return F(0.5) * x * (F(1) + np.tanh(F(0.7978845608) * (x + F(0.044715) * x * x * x)))


def factored(x: Array) -> Array:
    inner = x * (F(0.7978845608) + F(0.7978845608 * 0.044715) * x * x)
    return x * (F(0.5) * (F(1) + np.tanh(inner)))


ENGINES: list[tuple[str, str, Callable[..., Array]]] = [
    *(("embed", "h.0.ln_1", way) for way in (two_passes, running, scaled_and_shifted)),
    *(("h.0.ln_2", "h.0.mlp.pre", way) for way in (pairwise, from_the_bias_on)),
    *(("h.0.attn.scores", "h.0.attn.pattern", way) for way in (divided, times_reciprocal)),
    *(("h.0.mlp.pre", "h.0.mlp.act", way) for way in (tanh_form, factored)),
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine[2].__name__)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16), scale=st.sampled_from([0.1, 1, 8]), offset=st.sampled_from([0, 3])
)
def test_no_engine_in_float32_is_refuted(
    engine: tuple[str, str, Callable[..., Array]],
    dtype: str,
    seed: int,
    scale: float,
    offset: float,
) -> None:
    reads, site, way = engine
    p, of = PRECISIONS[dtype], sites(CONFIG)[reads]
    t = CONFIG.n_ctx
    shape = (t, of.width) if of.width else (CONFIG.n_head, t, t)
    rng = np.random.default_rng(seed)
    x = np.asarray(p.round(scale * (rng.normal(size=shape) + offset)), F)
    weights = DeclaredWeights(SOURCE.tensors, p)
    tensors = [np.asarray(weights[name], F) for name in sites(CONFIG)[site].weights]
    shown = np.asarray(p.round(way(x, *tensors)), F)
    found = Identification(CONFIG, weights, p)
    found.begin(rng.integers(0, CONFIG.n_vocab, (1, t)))
    found(reads, x[None])
    found(site, shown[None])
    last = found.found()[-1]
    (own,) = (tried for tried in last.tried if tried.recipe.name == "float32")
    assert own.agreement.outside == 0
