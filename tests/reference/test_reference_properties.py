"""Properties of the oracle on models that are hard on arithmetic (``tests/strategies.py``).

What must hold there exactly, or to within the rounding of the operation itself: nothing here is
compared with another computation of the same thing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import sites_of
from rounding import gamma, nats_apart
from strategies import Model, models, scaled, tokens

from gpt_verify.reference import forward, logits
from gpt_verify.reference.loss import loss_nats
from gpt_verify.sites import sites

many = scaled(40)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Model, Any, Any]:
    """A model, one sequence, and every site of the oracle's run."""
    model = draw(models())
    row = draw(tokens(model.config))[0]
    return model, row, sites_of(model.tensors(), model.config, row)


@many
@given(runs())
def test_every_site_is_finite(run):
    model, _row, found = run
    assert list(found) == list(sites(model.config))
    assert all(np.isfinite(value).all() for value in found.values())


@many
@given(runs())
def test_attention_is_a_distribution_over_the_past(run):
    model, row, found = run
    future = ~np.tri(len(row), dtype=bool)
    for layer in range(model.config.n_layer):
        pattern_HTS = found[f"h.{layer}.attn.pattern"]
        assert not pattern_HTS[:, future].any()
        assert (pattern_HTS >= 0).all()
        # Every weight is divided by a sum of n roundings, and they are summed again.
        rounding = gamma(2 * len(row) + 1)
        assert np.abs(pattern_HTS.sum(axis=-1) - 1).max() <= rounding


@many
@given(runs())
def test_a_mix_lies_between_the_values_that_it_mixes(run):
    model, row, found = run
    width = model.config.n_embd
    for layer in range(model.config.n_layer):
        value_TD = found[f"h.{layer}.attn.qkv"][:, 2 * width :]
        mix_TD = found[f"h.{layer}.attn.mix"]
        # The weights' sum is off by γ_(n+1), and the sum of the products by γ_n.
        rounding = gamma(2 * len(row) + 3) * np.abs(value_TD).max(initial=0)
        for t in range(len(row)):
            past = value_TD[: t + 1]
            assert (mix_TD[t] >= past.min(axis=0) - rounding).all()
            assert (mix_TD[t] <= past.max(axis=0) + rounding).all()


@many
@given(runs())
def test_the_residual_stream_is_a_sum_exactly(run):
    model, _row, found = run
    stream = found["embed"]
    for layer in range(model.config.n_layer):
        middle = found[f"h.{layer}.resid_mid"]
        assert np.array_equal(middle, stream + found[f"h.{layer}.attn.out"])
        stream = found[f"h.{layer}.resid_post"]
        assert np.array_equal(stream, middle + found[f"h.{layer}.mlp.out"])


@many
@given(runs())
def test_a_norm_is_no_larger_than_its_gain_makes_it(run):
    """Σ ((y - b) / g)² = D σ² / (σ² + ε) ≤ D, whatever the variance; less where it is tiny."""
    model, _row, found = run
    weights, width = model.tensors(), model.config.n_embd
    for site in sites(model.config).values():
        if site.operation == "layer_norm":
            gain_D, bias_D = (weights[name].astype(np.float64) for name in site.weights)
            y_TD = found[site.name]
            squares_T = (((y_TD - bias_D) / gain_D) ** 2).sum(axis=-1)
            # The norm's own roundings, of mean, variance and root; then that of y and of y - b,
            # which is of the size of y and b, over the gain.
            own = gamma(2 * width + 10) * np.sqrt(width)
            apart_TD = 2 * gamma(3) * (np.abs(y_TD) + np.abs(bias_D)) / np.abs(gain_D)
            off_T = own + np.linalg.norm(apart_TD, axis=-1)
            assert (np.sqrt(squares_T) <= np.sqrt(width) + off_T).all()


@many
@given(models(), st.data())
def test_the_future_is_not_seen_by_one_bit(model, data):
    row = data.draw(tokens(model.config))[0]
    start = data.draw(st.integers(1, len(row)))
    other = row.copy()
    other[start:] = (other[start:] + 1) % model.config.n_vocab
    weights = model.tensors()
    expected, found = (logits(weights, model.config, t) for t in (row, other))
    assert np.array_equal(found[:start], expected[:start])


@many
@given(models(), st.data())
def test_the_loss_is_not_negative_and_no_more_than_the_spread_of_logits(model, data):
    row = data.draw(tokens(model.config))[0]
    found = logits(model.tensors(), model.config, row)
    if len(row) > 1:
        loss = loss_nats(found, row)
        spread = np.ptp(found, axis=-1).max()
        most = spread + np.log(model.config.n_vocab)
        assert 0 <= loss <= most + nats_apart(found, len(row))


@many
@given(models(), st.data())
def test_float32_is_finite_as_well(model, data):
    row = data.draw(tokens(model.config))[0]
    (*_, (site, narrow)) = forward(model.tensors(), model.config, row, np.float32)
    assert (site, narrow.dtype) == ("logits", np.float32)
    assert np.isfinite(narrow).all()
