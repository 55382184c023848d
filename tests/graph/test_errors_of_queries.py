"""One error of a query is an error of all its scores: it does not average out over the sources."""

from __future__ import annotations

import numpy as np
import pytest
from families import read, stated
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_verify.graph.local import LocalOracle
from gpt_verify.graph.operations.mix import _covariance
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.ops import softmax


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    length=st.integers(1, 90),
    kinds=st.integers(1, 90),
    scale=st.floats(0.1, 3.0),
)
def test_the_bound_holds_and_is_met(seed: int, length: int, kinds: int, scale: float) -> None:
    """Sources are of a few kinds, as tokens are."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, kinds, length)
    k_SK, v_SX = (rng.normal(size=(kinds, n))[of] for n in (4, 5))
    q_TK = scale * rng.normal(size=(length, 4))
    scores_TS = np.where(np.tri(length, dtype=bool), q_TK @ k_SK.T, -np.inf)
    p_TS = softmax(scores_TS)
    error2_TK = rng.uniform(0.5, 1.0, size=(length, 4)) ** 2
    joint = np.einsum("ts,sc,sx->tcx", p_TS, k_SK, v_SX)
    c_TKX = joint - (p_TS @ k_SK)[:, :, None] * (p_TS @ v_SX)[:, None]
    exact_TX = np.sum(error2_TK[:, :, None] * c_TKX**2, axis=1)
    found_TX = _covariance(*(np.asarray(x, np.float32) for x in (p_TS, error2_TK, k_SK, v_SX)))
    noise = 1e-5 * max(1.0, float(np.max(v_SX**2)) * float(np.max(k_SK**2)))
    # All targets of a short sequence are among those that are computed.
    assert (found_TX[:32] >= exact_TX[:32] - noise).all()
    # Of a long one a few may be above what was found of their neighbours, by little.
    assert (found_TX >= exact_TX / 25 - noise).mean() > 0.99
    largest = float(np.max(exact_TX))
    assert float(np.max(found_TX)) <= 100 * largest + noise


@pytest.mark.parametrize("p", [BFLOAT16, FLOAT16], ids=lambda p: p.name)
def test_few_tokens_in_a_long_context_with_queries_that_were_scaled(p: Precision) -> None:
    """As OPT's queries are, by 8^(-1/2), before a fused kernel: scores are rounded together, and
    the values of 12 tokens, each there hundreds of times, with them."""
    keys = stated("opt", max_position_embeddings=2048, hidden_size=16, num_attention_heads=2)
    config = read(keys)
    rng = np.random.default_rng(5)
    tokens_T = rng.integers(0, 12, 2048)
    q, k, v = (p.round(rng.normal(size=(12, 16)).astype(np.float32))[tokens_T] for _ in "qkv")
    q = p.round((4 * q + rng.normal(size=q.shape)).astype(np.float32))
    oracle = LocalOracle(config, DeclaredWeights({}, p), p, tokens_T)
    for name, value in (("q", q), ("k", k), ("v", v)):
        oracle.show(f"h.0.attn.{name}", value)
    expected = oracle.expected("h.0.attn.mix")
    heads = (x.reshape(2048, 2, 8).transpose(1, 0, 2).astype(np.float64) for x in (q, k, v))
    q_HTK, k_HSK, v_HSX = heads
    scaled = p.round((q_HTK / np.sqrt(8)).astype(np.float32)).astype(np.float64)
    scores = np.where(np.tri(2048, dtype=bool), scaled @ k_HSK.transpose(0, 2, 1), -np.inf)
    mix_TD = (softmax(scores) @ v_HSX).transpose(1, 0, 2).reshape(2048, 16)
    assert expected.budget is not None
    z = (p.round(mix_TD.astype(np.float32)) - expected.value) / expected.budget
    assert float(np.max(np.abs(z))) < 6
    assert float(np.sqrt(np.mean(z**2))) < 1
