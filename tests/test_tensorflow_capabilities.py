"""What OpenAI's graph can do besides its forward pass: trained, decoded with, copied."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, checkpoint
from oracle import assert_agrees, distance

from reference import logits, tensor_table
from reference.loss import token_losses_nats
from verify.checkpoint import Checkpoint
from verify.checks.subject import same_bits
from verify.errors import PortError
from verify.ports.openai_tf import openai_tf
from verify.ports.port import IGNORED

WEIGHTS = checkpoint().tensors
TOKENS = np.random.default_rng(5).integers(0, CONFIG.n_vocab, (2, 7))


@pytest.fixture(scope="module")
def port():
    # Filled tensor by tensor: no files are needed.
    source = checkpoint()
    port = openai_tf(Checkpoint(source.path, "huggingface", CONFIG, source.tensors))
    yield port
    port.close()


def parameter(port, name):
    return next(p for p in port.parameters() if p.implies == name)


def weights_of(port):
    """What the port computes with, in the shapes of the table and in float64."""
    table = tensor_table(CONFIG)
    return {
        p.implies: p.read().astype(np.float64).reshape(table[p.implies].shape)
        for p in port.parameters()
    }


# Writing


@pytest.mark.parametrize("name", ["wte", "h1/attn/c_attn/w", "ln_f/b"])
def test_what_is_written_is_computed_with_and_can_be_undone(port, name):
    before = port.logits(TOKENS)
    written = parameter(port, name)
    original = written.read()
    changed = original + np.float32(0.25) * np.roll(original, 1)
    written.write(changed)
    try:
        assert same_bits(written.read(), changed)
        after = weights_of(port)
        assert not np.array_equal(after[name].ravel(), WEIGHTS[name].ravel())
        with port.float64() as twin:
            assert same_bits(parameter(twin, name).read(), changed)
            for row, found in zip(TOKENS, twin.logits(TOKENS), strict=True):
                assert_agrees(found, logits(after, CONFIG, row))
    finally:
        written.write(original)
    assert same_bits(port.logits(TOKENS), before)
    for other, value in weights_of(port).items():
        assert np.array_equal(value, WEIGHTS[other]), other


def test_a_value_is_rounded_to_the_format_of_the_variable(port):
    gain = parameter(port, "ln_f/g")
    original = gain.read()
    gain.write(np.full(gain.shape, 0.1))
    try:
        assert same_bits(gain.read(), np.full(gain.shape, 0.1, np.float32))
        gain.write(np.full(gain.shape, 1e300))
        assert np.isinf(gain.read()).all()
    finally:
        gain.write(original)


def test_a_value_of_another_shape_is_refused(port):
    matrix = parameter(port, "h0/mlp/c_fc/w")
    assert matrix.shape == (1, 24, 96)
    with pytest.raises(
        PortError, match=r"h0/mlp/c_fc/w is float32\[1, 24, 96\]; float64\[24, 96\]"
    ):
        matrix.write(np.zeros((24, 96)))
    assert np.array_equal(matrix.read()[0], WEIGHTS["h0/mlp/c_fc/w"])


# Loss


def nats(weights, tokens, labels):
    """Mean over all predictions that are not ignored, by the oracle."""
    costs = []
    for row, wanted in zip(tokens, labels, strict=True):
        predicted = np.flatnonzero(wanted[1:] != IGNORED)
        if len(predicted):
            named = np.where(wanted == IGNORED, 0, wanted)
            costs.append(token_losses_nats(logits(weights, CONFIG, row), named)[predicted])
    return np.mean(np.concatenate(costs))


@pytest.fixture(scope="module")
def twin(port):
    with port.float64() as twin:
        yield twin


@pytest.mark.parametrize("length", [2, 7, CONFIG.n_ctx])
def test_the_loss_is_the_shifted_mean_in_nats(port, twin, length):
    tokens = np.random.default_rng(length).integers(0, CONFIG.n_vocab, (3, length))
    expected = nats(WEIGHTS, tokens, tokens)
    assert_agrees(twin.loss(tokens, tokens), expected)
    assert distance(port.loss(tokens, tokens), expected) < 1e-5


@pytest.mark.parametrize(
    "ignored", [[(0, 3)], [(0, 0)], [(0, 6), (1, 1)], [(1, j) for j in range(7)]]
)
def test_ignored_labels_are_ignored(twin, ignored):
    labels = TOKENS.copy()
    labels[tuple(zip(*ignored, strict=True))] = IGNORED
    assert_agrees(twin.loss(TOKENS, labels), nats(WEIGHTS, TOKENS, labels))
    # What is not predicted is not looked at: the first label of a row.
    if ignored == [(0, 0)]:
        assert twin.loss(TOKENS, labels) == twin.loss(TOKENS, TOKENS)


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:, :1]])
def test_the_loss_of_no_prediction_is_no_number(port, tokens):
    assert np.isnan(port.loss(tokens, np.full_like(tokens, IGNORED)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (TOKENS[:, 1:], r"a label for each token, not int\[2, 6\] for int\[2, 7\]"),
        (np.full_like(TOKENS, CONFIG.n_vocab), "label value of 101"),
        (np.full_like(TOKENS, -1), "label value of -1"),
    ],
)
def test_impossible_labels_are_refused(port, labels, message):
    with pytest.raises(PortError, match=message):
        port.loss(TOKENS, labels)


def test_asking_for_the_loss_changes_no_bit_of_the_forward_pass(port, twin):
    before = port.logits(TOKENS), twin.logits(TOKENS)
    port.loss(TOKENS, TOKENS), twin.loss(TOKENS, TOKENS)
    assert same_bits(before[0], port.logits(TOKENS))
    assert same_bits(before[1], twin.logits(TOKENS))


# Cache


def decoded(port, tokens, *splits):
    """Logits of the parts between the splits, decoded one after the other."""
    parts, cache = [], None
    for part in np.split(tokens, splits, axis=1):
        found, cache = port.step(part, cache)
        parts.append(found)
    return np.concatenate(parts, axis=1)


def held(port):
    return port._worker.call("held").fields


@pytest.mark.parametrize("split", range(1, 7))
def test_every_split_is_the_full_pass(port, twin, split):
    expected = np.stack([logits(WEIGHTS, CONFIG, row) for row in TOKENS])
    assert_agrees(decoded(twin, TOKENS, split), expected)
    assert_agrees(decoded(twin, TOKENS, split, 7), expected)  # nothing is added at the end
    # float32: that nothing is grossly wrong; noise floors judge the rest.
    assert distance(decoded(port, TOKENS, split), expected) < 1e-5


def test_token_by_token_to_the_last_position(twin):
    tokens = np.random.default_rng(1).integers(0, CONFIG.n_vocab, (1, CONFIG.n_ctx))
    found = decoded(twin, tokens, *range(1, CONFIG.n_ctx))
    assert_agrees(found[0], logits(WEIGHTS, CONFIG, tokens[0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_from_nothing_has_the_bits_of_the_forward_pass(port, twin, dtype):
    judged = {"float32": port, "float64": twin}[dtype]
    before = judged.logits(TOKENS)
    found, _cache = judged.step(TOKENS, None)
    assert same_bits(found, before)
    assert same_bits(judged.logits(TOKENS), before)
    assert found.dtype == dtype


def test_positions_advance_with_the_cache(twin):
    """The same token twice is told apart by its position alone, once one token is in the cache."""
    first, cache = twin.step(TOKENS[:, :1], None)
    second, _ = twin.step(TOKENS[:, :1], cache)
    twice = np.stack([logits(WEIGHTS, CONFIG, row.repeat(2)) for row in TOKENS[:, :1]])
    assert_agrees(first[:, 0], twice[:, 0])
    assert_agrees(second[:, 0], twice[:, 1])


def test_two_sequences_that_take_turns_do_not_disturb_each_other(twin):
    a, b = TOKENS, TOKENS[:, ::-1]
    _, cache_a = twin.step(a[:, :3], None)
    _, cache_b = twin.step(b[:, :4], None)
    last_a, _ = twin.step(a[:, 3:], cache_a)
    last_b, _ = twin.step(b[:, 4:], cache_b)
    assert_agrees(last_a, np.stack([logits(WEIGHTS, CONFIG, row)[3:] for row in a]))
    assert_agrees(last_b, np.stack([logits(WEIGHTS, CONFIG, row)[4:] for row in b]))


def test_beyond_the_last_position_is_refused(port):
    tokens = np.zeros((1, CONFIG.n_ctx), np.int64)
    _, cache = port.step(tokens, None)
    with pytest.raises(PortError, match=r"= 19 is not in \[0, 19\)"):
        port.step(tokens[:, :1], cache)
    assert np.isfinite(port.logits(TOKENS)).all()


def test_a_cache_is_used_once_and_by_its_own_port(port, twin):
    _, cache = port.step(TOKENS, None)
    port.step(TOKENS, cache)
    _, wide = twin.step(TOKENS, None)
    for foreign in (cache, wide):
        with pytest.raises(PortError, match="used already, or is another port's"):
            port.step(TOKENS, foreign)


def test_a_cache_of_another_batch_is_refused(port):
    _, cache = port.step(TOKENS, None)
    with pytest.raises(PortError, match="Concat"):
        port.step(TOKENS[:1], cache)


def test_caches_are_released(port, twin):
    port.logits(TOKENS)
    assert held(port)["caches"] == 0
    _, cache = port.step(TOKENS, None)
    layers, keys_and_values, batch, length = CONFIG.n_layer, 2, *TOKENS.shape
    expected = layers * keys_and_values * batch * length * CONFIG.n_embd * 4
    assert held(port) == {"caches": 1, "bytes": expected}
    _, cache = port.step(TOKENS, cache)  # the old one is gone
    assert held(port) == {"caches": 1, "bytes": 2 * expected}
    _, _other = twin.step(TOKENS, None)
    assert held(port)["caches"] == 2
    del cache, _other, _
    port.logits(TOKENS)
    assert held(port) == {"caches": 0, "bytes": 0}
