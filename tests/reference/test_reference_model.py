"""The forward pass of the oracle: what it yields, in which precision, and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from oracle import (
    CONFIG,
    TOKENS,
    assert_agrees,
    distance,
    few,
    models,
    sites_of,
    tokens_of,
    weights_of,
)
from rounding import Noise, reference_run

from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.reference import Config, forward, logits, tensor_table
from gpt_verify.sites import sites

WEIGHTS = weights_of(CONFIG)


# What it yields


def test_every_site_by_name_order_and_shape():
    t, d, h, v, f = 5, 12, 3, 11, 48
    block = [
        ("ln_1", (t, d)),
        ("attn.qkv", (t, 3 * d)),
        ("attn.scores", (h, t, t)),
        ("attn.pattern", (h, t, t)),
        ("attn.mix", (t, d)),
        ("attn.out", (t, d)),
        ("resid_mid", (t, d)),
        ("ln_2", (t, d)),
        ("mlp.pre", (t, f)),
        ("mlp.act", (t, f)),
        ("mlp.out", (t, d)),
        ("resid_post", (t, d)),
    ]
    assert [(site, value.shape) for site, value in forward(WEIGHTS, CONFIG, TOKENS)] == [
        ("embed", (t, d)),
        *((f"h.0.{part}", shape) for part, shape in block),
        *((f"h.1.{part}", shape) for part, shape in block),
        ("ln_f", (t, d)),
        ("logits", (t, v)),
    ]


@few
@given(models())
def test_the_table_of_sites_lists_what_is_yielded_in_order(model):
    config, weights, tokens = model
    found = list(forward(weights, config, tokens))
    assert [site for site, _value in found] == list(sites(config))
    assert all(value.dtype == np.float64 for _site, value in found)
    assert np.array_equal(logits(weights, config, tokens), found[-1][1])


def test_the_table_of_sites_knows_what_each_reads():
    """What one site holds reaches exactly those that read it, directly or through others."""
    table, tokens = sites(CONFIG), TOKENS
    plain = sites_of(WEIGHTS, CONFIG, tokens)
    random = np.random.default_rng(0)
    for number, changed in enumerate(table):
        calls = iter(range(len(table)))

        def store(value, calls=calls, number=number):
            if next(calls) != number:
                return value
            return value * random.uniform(0.5, 1.5, value.shape)

        found = dict(forward(WEIGHTS, CONFIG, tokens, store=store))
        different = {site for site in table if not np.array_equal(found[site], plain[site])}
        reached = {changed}
        for site in table.values():
            if reached & set(site.inputs):
                reached.add(site.name)
        assert different == reached


def test_the_table_of_sites_knows_which_weights_each_reads():
    """The first site that changes with a tensor is the first that is said to read it."""
    plain = sites_of(WEIGHTS, CONFIG, TOKENS)
    for name in tensor_table(CONFIG):
        found = sites_of({**WEIGHTS, name: WEIGHTS[name] * 1.5}, CONFIG, TOKENS)
        different = [site for site in plain if not np.array_equal(found[site], plain[site])]
        readers = [site.name for site in sites(CONFIG).values() if name in site.weights]
        assert different[0] == readers[0]
        assert set(readers) <= set(different)


def test_the_head_is_wte_by_value():
    """A change of a token that does not occur changes that token's logits and nothing else."""
    unused = 5
    assert unused not in TOKENS
    wte = WEIGHTS["wte"].copy()
    wte[unused] = np.arange(12)
    plain, found = (sites_of(w, CONFIG, TOKENS) for w in (WEIGHTS, {**WEIGHTS, "wte": wte}))
    different = [site for site in plain if not np.array_equal(found[site], plain[site])]
    assert different == ["logits"]
    others = np.arange(CONFIG.n_vocab) != unused
    assert_agrees(found["logits"][:, others], plain["logits"][:, others])
    assert_agrees(found["logits"][:, unused], found["ln_f"] @ np.arange(12.0))


# Precision


@pytest.mark.parametrize("kept", [np.float32, np.float64])
def test_float32_on_request_is_float32_everywhere(kept):
    weights = {name: value.astype(kept) for name, value in WEIGHTS.items()}
    stored = []

    def store(value):
        stored.append(value.dtype)
        return value

    narrow = dict(forward(weights, CONFIG, TOKENS, np.float32, store))
    assert {value.dtype for value in narrow.values()} == set(stored) == {np.dtype(np.float32)}
    wide = sites_of(weights, CONFIG, TOKENS)
    known = Noise(reference_run(weights, CONFIG, TOKENS), FLOAT32)
    # Further from float64 than one rounding of the result would be: the way there was rounded.
    for site in ("h.1.mlp.out", "ln_f", "logits"):
        once = distance(wide[site].astype(np.float32), wide[site])
        assert once < distance(narrow[site], wide[site])
        known.assert_holds(site, narrow[site])


def test_store_is_applied_to_every_site_and_what_follows_reads_what_was_stored():
    seen = []

    def store(value):
        seen.append(value.astype(np.float16).astype(np.float64))
        return seen[-1]

    found = list(forward(WEIGHTS, CONFIG, TOKENS, store=store))
    assert len(seen) == len(found) == len(sites(CONFIG))
    assert all(value is kept for (_site, value), kept in zip(found, seen, strict=True))
    value = dict(found)
    middle = value["h.0.resid_mid"] + value["h.0.mlp.out"]
    assert np.array_equal(value["h.0.resid_post"], middle.astype(np.float16))


def test_tensors_are_looked_up_one_at_a_time():
    """A lazy mapping is read once for each use, in the order of the table, then wte as head."""
    asked = []

    class Lazy(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    logits(Lazy(WEIGHTS), CONFIG, TOKENS)
    assert asked == [*tensor_table(CONFIG), "wte"]


# By hand


def test_positions_count_from_zero():
    """wpe's rows are used in order, the first for the first token, and none but those."""
    for length in range(1, CONFIG.n_ctx + 1):
        wpe = WEIGHTS["wpe"].copy()
        wpe[length:] = np.nan
        tokens = tokens_of(CONFIG, length)
        found = sites_of({**WEIGHTS, "wpe": wpe}, CONFIG, tokens)
        rows = found["embed"] - WEIGHTS["wte"][tokens]
        assert_agrees(rows, WEIGHTS["wpe"][:length])


def test_one_layer_one_head_one_channel_by_hand():
    """With D = 1 a layer norm is its bias, and everything else is a number."""
    config = Config(n_vocab=2, n_ctx=2, n_embd=1, n_head=1, n_layer=1)
    weights = {name: np.full(spec.shape, 0.5) for name, spec in tensor_table(config).items()}
    weights["wte"] = np.array([[1.0], [-2.0]])
    found = sites_of(weights, config, np.array([1, 0]))
    assert found["embed"].tolist() == [[-1.5], [1.5]]
    assert found["h.0.attn.qkv"].tolist() == [[0.75] * 3] * 2
    assert found["h.0.attn.scores"].tolist() == [[[0.5625] * 2] * 2]
    assert found["h.0.attn.pattern"].tolist() == [[[1, 0], [0.5, 0.5]]]
    assert found["h.0.attn.mix"].tolist() == [[0.75], [0.75]]
    assert found["h.0.attn.out"].tolist() == [[0.875], [0.875]]
    assert found["h.0.resid_mid"].tolist() == [[-0.625], [2.375]]
    assert found["h.0.mlp.pre"].tolist() == [[0.75] * 4] * 2
    assert found["logits"].tolist() == [[0.5, -1.0], [0.5, -1.0]]


# What it refuses


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([], np.int64), "0 tokens; the model takes 1 … 7"),
        (np.zeros(8, np.int64), "8 tokens; the model takes 1 … 7"),
        ([0, 11], "token ids must lie in 0 … 10"),
        ([-1, 0], "token ids must lie in 0 … 10"),
        ([0.0, 1.0], "tokens must be a vector of integers, not float64[2]"),
        ([[0, 1]], "tokens must be a vector of integers, not int64[1, 2]"),
        (3, "tokens must be a vector of integers, not int64[]"),
        ([True, False], "tokens must be a vector of integers, not bool[2]"),
        (["a"], "tokens must be a vector of integers, not <U1[1]"),
    ],
)
def test_bad_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        next(forward(WEIGHTS, CONFIG, np.asarray(tokens)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_any_integers_will_do(dtype):
    expected = logits(WEIGHTS, CONFIG, TOKENS)
    assert np.array_equal(logits(WEIGHTS, CONFIG, TOKENS.astype(dtype)), expected)
