"""Loss and logit lens of the oracle against closed forms."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONFIG, TOKENS, assert_agrees, few, models, sites_of, weights_of
from rounding import gamma, nats_apart

from gpt_verify.reference.lens import kl_nats, lens, lens_logits, rank
from gpt_verify.reference.loss import log_softmax, loss_nats, token_losses_nats
from gpt_verify.reference.model import forward

V = 11
rows = st.lists(st.floats(-30, 30), min_size=2, max_size=7)


# Loss


@few
@given(rows)
def test_log_softmax_is_the_logarithm_of_softmax(row):
    total = math.fsum(math.exp(v) for v in row)
    expected = [v - math.log(total) for v in row]
    assert_agrees(log_softmax(np.array([row])), [expected])


def test_log_softmax_where_softmax_underflows():
    assert log_softmax(np.array([0.0, -1e4])).tolist() == [0.0, -1e4]
    assert log_softmax(np.array([1e4, 0.0])).tolist() == [0.0, -1e4]


@pytest.mark.parametrize("length", [2, 3, 7])
def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(length):
    """Mean, not sum: the length does not matter. In nats: of V, to the base e."""
    tokens = np.arange(length)
    for value in (0.0, -7.5):
        assert_agrees(loss_nats(np.full((length, V), value), tokens), math.log(V))


def test_a_certain_and_correct_prediction_of_the_next_token_costs_nothing():
    """The logits at t foretell the token at t + 1; foretelling any other one is dear."""
    next_one = np.zeros((5, V))
    next_one[np.arange(4), TOKENS[1:]] = 1e4
    assert loss_nats(next_one, TOKENS) == 0
    own = np.zeros((5, V))
    own[np.arange(5), TOKENS] = 1e4
    assert token_losses_nats(own, TOKENS).tolist() == [1e4] * 4  # no token repeats its neighbour


def test_the_loss_is_the_mean_of_what_each_prediction_costs():
    p = np.full((3, V), 0.5 / (V - 1))
    p[0, 4], p[0, 0] = 1 / 4, 0.5 / (V - 1) + 1 / 4
    p[1, 7] = 0.5
    costs = token_losses_nats(np.log(p), np.array([1, 4, 7]))
    expected = [-math.log(1 / 4 / p[0].sum()), -math.log(0.5 / p[1].sum())]
    assert_agrees(costs, expected)
    assert_agrees(loss_nats(np.log(p), np.array([1, 4, 7])), sum(expected) / 2)


def test_the_last_logits_are_not_used():
    logits = np.log(np.arange(1.0, 3 * V + 1).reshape(3, V))
    spoiled = logits.copy()
    spoiled[-1] = np.nan
    tokens = np.array([1, 4, 7])
    assert loss_nats(spoiled, tokens) == loss_nats(logits, tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3], "the loss needs at least two tokens"),
        ([], "the loss needs at least two tokens"),
        ([3, 4], "logits for 3 tokens, but tokens of shape [2]"),
        ([3, 4, 5, 6], "logits for 3 tokens, but tokens of shape [4]"),
        ([[3, 4, 5]] * 3, "logits for 3 tokens, but tokens of shape [3, 3]"),
        ([3, -100, 5], "token ids must lie in 0 … 10"),
        ([3, 4, 11], "token ids must lie in 0 … 10"),
    ],
)
def test_tokens_that_cannot_be_scored_are_refused(tokens, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss_nats(np.zeros((3, V)), np.array(tokens, np.int64))


# Lens


@few
@given(models())
def test_the_lens_reads_every_state_of_the_stream_and_ends_in_the_model(model):
    config, weights, tokens = model
    found = list(lens(weights, config, tokens))
    assert [site for site, _value in found] == [
        "embed",
        *(f"h.{i}.{part}" for i in range(config.n_layer) for part in ("resid_mid", "resid_post")),
    ]
    sites = sites_of(weights, config, tokens)
    assert np.array_equal(found[-1][1], log_softmax(sites["logits"]))
    for site, value in found:
        assert value.shape == (len(tokens), config.n_vocab)
        assert_agrees(np.exp(value).sum(axis=-1), np.ones(len(tokens)), site)


def test_the_lens_at_a_layer_is_the_model_cut_off_there():
    """Layers that write nothing leave the stream as it is, up to the end."""
    weights = weights_of(CONFIG)
    silent = {n: v * 0 if "/c_proj/" in n else v for n, v in weights.items()}
    by_site = dict(lens(weights, CONFIG, TOKENS))
    assert_agrees(
        by_site["embed"], log_softmax(sites_of(silent, CONFIG, TOKENS)["logits"]), "embed"
    )
    half = {n: v * 0 if n.startswith("h1/") and "/c_proj/" in n else v for n, v in weights.items()}
    cut = log_softmax(sites_of(half, CONFIG, TOKENS)["logits"])
    assert_agrees(by_site["h.0.resid_post"], cut, "h.0.resid_post")


def test_the_lens_keeps_float32():
    weights = weights_of(CONFIG)
    stream = dict(forward(weights, CONFIG, TOKENS, np.float32))["h.0.resid_post"]
    assert lens_logits(weights, stream).dtype == np.float32


# Divergence


@few
@given(rows)
def test_nothing_diverges_from_itself(row):
    log_p = log_softmax(np.array([row]))
    assert kl_nats(log_p, log_p).tolist() == [0.0]


@few
@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=7))
def test_divergence_is_not_negative(pairs):
    logits = np.array(pairs).T
    log_p, log_q = log_softmax(logits)
    # Gibbs' inequality: what is left is how far either sum is from 1, and the rounding of the sum.
    lost = 2 * gamma(len(pairs) + 10) + nats_apart(logits, len(pairs))
    assert kl_nats(log_p[None], log_q[None])[0] >= -lost


def test_divergence_of_two_coins():
    p, q = np.array([0.5, 0.25, 0.9]), np.array([0.25, 0.5, 0.1])
    log_p, log_q = (np.log(np.stack([x, 1 - x], axis=-1)) for x in (p, q))
    assert_agrees(
        kl_nats(log_p, log_q),
        [
            math.log(2) - math.log(3) / 2,  # ½ ln(½/¼) + ½ ln(½/¾)
            math.log(3) * 3 / 4 - math.log(2),  # ¼ ln(¼/½) + ¾ ln(¾/½)
            math.log(9) * 0.8,  # 0.9 ln 9 - 0.1 ln 9
        ],
    )


def test_divergence_where_something_is_impossible():
    never, even = np.array([[0.0, -np.inf]]), np.log([[0.5, 0.5]])
    assert_agrees(kl_nats(never, even), [math.log(2)])
    assert kl_nats(never, never).tolist() == [0.0]
    assert kl_nats(even, never).tolist() == [np.inf]
    assert np.isnan(kl_nats(np.array([[np.nan, 0.0]]), even)).all()


# Rank


def test_rank_counts_what_is_strictly_larger():
    logits = np.array([[3.0, 1.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-1.0, 0.0, -2.0, 0.0]])
    found = [rank(logits, np.full(3, token)).tolist() for token in range(4)]
    assert found == [[0, 0, 2], [3, 0, 0], [1, 0, 3], [1, 0, 0]]
    assert rank(logits, np.array([2, 0, 1])).tolist() == [1, 0, 0]


def test_nan_is_never_the_top():
    logits = np.array([[np.nan, 1.0, 2.0]])
    assert [int(rank(logits, np.array([token]))[0]) for token in range(3)] == [3, 2, 1]
