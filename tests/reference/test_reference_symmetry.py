"""What must not change the oracle: a later token, and rewritings of the weights that mean the same.

That these hold of GPT-2 follows from the paper and not from our formulas: wrong heads, masks or
norms break them.
"""

from __future__ import annotations

import re

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import assert_agrees, few, models, sites_of

from gpt_verify.reference import logits

#: Sites whose last axis is the position that is read.
OVER_SOURCES = ("attn.scores", "attn.pattern")


@few
@given(models(), st.data())
def test_a_token_changes_nothing_before_it(model, data):
    config, weights, tokens = model
    s = data.draw(st.integers(0, len(tokens) - 1))
    other = data.draw(st.integers(0, config.n_vocab - 1))
    assume(other != tokens[s])
    changed = tokens.copy()
    changed[s] = other
    plain, found = (sites_of(weights, config, t) for t in (tokens, changed))
    for site, value in plain.items():
        before = found[site][..., :s, :]
        if site.endswith("attn.scores"):  # not masked yet: the future is in them
            before, value = before[..., :s], value[..., :s]
        assert np.array_equal(before, value[..., :s, :]), site
    assert not np.array_equal(found["embed"][s:], plain["embed"][s:])


@few
@given(models(), st.data())
def test_a_prefix_alone_gives_what_it_gives_in_a_longer_sequence(model, data):
    config, weights, tokens = model
    t = data.draw(st.integers(1, len(tokens)))
    plain, found = (sites_of(weights, config, x) for x in (tokens, tokens[:t]))
    for site, value in plain.items():
        value = value[..., :t, :t] if site.endswith(OVER_SOURCES) else value[:t]
        assert_agrees(found[site], value, site)


def rewritten(weights, config, rewrite):
    """The same tensors, each given to ``rewrite(part of its layer, value)``."""
    return {name: rewrite(re.sub(r"^h\d+/", "", name), value) for name, value in weights.items()}


@few
@given(models(), st.randoms(use_true_random=False))
def test_the_order_of_heads_does_not_matter(model, random):
    config, weights, tokens = model
    order = random.sample(range(config.n_head), config.n_head)
    channels = np.arange(config.n_embd).reshape(config.n_head, -1)[order].ravel()
    three = np.concatenate([channels + part * config.n_embd for part in range(3)])

    def rewrite(part, value):
        if part.startswith("attn/c_attn"):
            return value[..., three]
        return value[channels] if part == "attn/c_proj/w" else value

    found = logits(rewritten(weights, config, rewrite), config, tokens)
    assert_agrees(found, logits(weights, config, tokens))


@few
@given(models(), st.randoms(use_true_random=False))
def test_the_order_of_neurons_does_not_matter(model, random):
    config, weights, tokens = model
    order = random.sample(range(4 * config.n_embd), 4 * config.n_embd)

    def rewrite(part, value):
        if part.startswith("mlp/c_fc"):
            return value[..., order]
        return value[order] if part == "mlp/c_proj/w" else value

    found = logits(rewritten(weights, config, rewrite), config, tokens)
    assert_agrees(found, logits(weights, config, tokens))


@few
@given(models(), st.floats(0.1, 10))
def test_queries_may_be_multiplied_by_what_keys_are_divided_by(model, factor):
    config, weights, tokens = model
    factors = np.repeat([factor, 1 / factor, 1], config.n_embd)

    def rewrite(part, value):
        return value * factors if part.startswith("attn/c_attn") else value

    found = logits(rewritten(weights, config, rewrite), config, tokens)
    assert_agrees(found, logits(weights, config, tokens))


@few
@given(models(), st.floats(-3, 3))
def test_what_is_added_to_all_channels_of_a_residual_write_is_not_read(model, constant):
    """Layer norms take the mean away, and nothing else reads the stream."""
    config, weights, tokens = model

    def rewrite(part, value):
        return value + constant if part in ("wpe", "attn/c_proj/b", "mlp/c_proj/b") else value

    found = sites_of(rewritten(weights, config, rewrite), config, tokens)
    plain = sites_of(weights, config, tokens)
    assert_agrees(found["logits"], plain["logits"])
    last = f"h.{config.n_layer - 1}.resid_post"
    added = (2 * config.n_layer + 1) * constant
    assert_agrees(found[last], plain[last] + added)
