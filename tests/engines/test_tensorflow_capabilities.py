"""What OpenAI's graph can do besides its forward pass: trained, decoded with, copied."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from gradients import gathered
from models import CONFIG, checkpoint
from oracle import assert_agrees, distance
from rounding import LIMIT_FLOORS, Noise, reference_run, slope

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.errors import PortError
from gpt_verify.laws.subject import same_bits
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.port import IGNORED
from gpt_verify.ports.openai_tf import openai_tf
from gpt_verify.ports.registry import build
from gpt_verify.reference import forward, logits, tensor_table
from gpt_verify.reference.loss import token_losses_nats
from gpt_verify.reference.ops import softmax

WEIGHTS = checkpoint().tensors
#: Filled tensor by tensor: no files are needed.
SOURCE = Checkpoint(Path("in-memory"), "huggingface", CONFIG, WEIGHTS)
TOKENS = np.random.default_rng(5).integers(0, CONFIG.n_vocab, (2, 7))


@pytest.fixture(scope="module")
def port():
    port = openai_tf(SOURCE)
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
        with port.float64() as float64_copy:
            assert same_bits(parameter(float64_copy, name).read(), changed)
            for row, found in zip(TOKENS, float64_copy.logits(TOKENS), strict=True):
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


def losses_run(weights, tokens):
    """Every next-token loss of one sequence."""

    def run(dtype, store):
        *_, (_, scores) = forward(weights, CONFIG, tokens, dtype, store)
        yield "losses", store(token_losses_nats(scores, tokens))

    return run


@pytest.fixture(scope="module")
def float64_copy(port):
    with port.float64() as float64_copy:
        yield float64_copy


@pytest.mark.parametrize("length", [2, 7, CONFIG.n_ctx])
def test_the_loss_is_the_shifted_mean_in_nats(port, float64_copy, length):
    tokens = np.random.default_rng(length).integers(0, CONFIG.n_vocab, (3, length))
    expected = nats(WEIGHTS, tokens, tokens)
    assert_agrees(float64_copy.loss(tokens, tokens), expected)
    # float32: the mean of losses whose logits are as far off as the noise of each sequence.
    known = [Noise(losses_run(WEIGHTS, row), FLOAT32) for row in tokens]
    floor = np.sqrt(np.mean([k.noise["losses"] ** 2 for k in known]))
    budget = FLOAT32.u * length * abs(expected)
    assert abs(port.loss(tokens, tokens) - expected) <= LIMIT_FLOORS * floor + budget


@pytest.mark.parametrize(
    "ignored", [[(0, 3)], [(0, 0)], [(0, 6), (1, 1)], [(1, j) for j in range(7)]]
)
def test_ignored_labels_are_ignored(float64_copy, ignored):
    labels = TOKENS.copy()
    labels[tuple(zip(*ignored, strict=True))] = IGNORED
    assert_agrees(float64_copy.loss(TOKENS, labels), nats(WEIGHTS, TOKENS, labels))
    # What is not predicted is not looked at: the first label of a row.
    if ignored == [(0, 0)]:
        assert float64_copy.loss(TOKENS, labels) == float64_copy.loss(TOKENS, TOKENS)


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


def test_asking_for_the_loss_changes_no_bit_of_the_forward_pass(port, float64_copy):
    before = port.logits(TOKENS), float64_copy.logits(TOKENS)
    port.loss(TOKENS, TOKENS), float64_copy.loss(TOKENS, TOKENS)
    assert same_bits(before[0], port.logits(TOKENS))
    assert same_bits(before[1], float64_copy.logits(TOKENS))


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
def test_every_split_is_the_full_pass(port, float64_copy, split):
    expected = np.stack([logits(WEIGHTS, CONFIG, row) for row in TOKENS])
    assert_agrees(decoded(float64_copy, TOKENS, split), expected)
    assert_agrees(decoded(float64_copy, TOKENS, split, 7), expected)  # nothing is added at the end
    for got, row in zip(decoded(port, TOKENS, split), TOKENS, strict=True):
        Noise(reference_run(WEIGHTS, CONFIG, row), FLOAT32).assert_holds("logits", got)


def test_token_by_token_to_the_last_position(float64_copy):
    tokens = np.random.default_rng(1).integers(0, CONFIG.n_vocab, (1, CONFIG.n_ctx))
    found = decoded(float64_copy, tokens, *range(1, CONFIG.n_ctx))
    assert_agrees(found[0], logits(WEIGHTS, CONFIG, tokens[0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_from_nothing_has_the_bits_of_the_forward_pass(port, float64_copy, dtype):
    judged = {"float32": port, "float64": float64_copy}[dtype]
    before = judged.logits(TOKENS)
    found, _cache = judged.step(TOKENS, None)
    assert same_bits(found, before)
    assert same_bits(judged.logits(TOKENS), before)
    assert found.dtype == dtype


def test_positions_advance_with_the_cache(float64_copy):
    """The same token twice is told apart by its position alone, once one token is in the cache."""
    first, cache = float64_copy.step(TOKENS[:, :1], None)
    second, _ = float64_copy.step(TOKENS[:, :1], cache)
    twice = np.stack([logits(WEIGHTS, CONFIG, row.repeat(2)) for row in TOKENS[:, :1]])
    assert_agrees(first[:, 0], twice[:, 0])
    assert_agrees(second[:, 0], twice[:, 1])


def test_two_sequences_that_take_turns_do_not_disturb_each_other(float64_copy):
    a, b = TOKENS, TOKENS[:, ::-1]
    _, cache_a = float64_copy.step(a[:, :3], None)
    _, cache_b = float64_copy.step(b[:, :4], None)
    last_a, _ = float64_copy.step(a[:, 3:], cache_a)
    last_b, _ = float64_copy.step(b[:, 4:], cache_b)
    assert_agrees(last_a, np.stack([logits(WEIGHTS, CONFIG, row)[3:] for row in a]))
    assert_agrees(last_b, np.stack([logits(WEIGHTS, CONFIG, row)[4:] for row in b]))


def test_beyond_the_last_position_is_refused(port):
    tokens = np.zeros((1, CONFIG.n_ctx), np.int64)
    _, cache = port.step(tokens, None)
    with pytest.raises(PortError, match=r"= 19 is not in \[0, 19\)"):
        port.step(tokens[:, :1], cache)
    assert np.isfinite(port.logits(TOKENS)).all()


def test_a_cache_is_used_once_and_by_its_own_port(port, float64_copy):
    _, cache = port.step(TOKENS, None)
    port.step(TOKENS, cache)
    _, wide = float64_copy.step(TOKENS, None)
    for foreign in (cache, wide):
        with pytest.raises(PortError, match="used already, or is another port's"):
            port.step(TOKENS, foreign)


def test_a_cache_of_another_batch_is_refused(port):
    _, cache = port.step(TOKENS, None)
    with pytest.raises(PortError, match="Concat"):
        port.step(TOKENS[:1], cache)


def test_caches_are_released(port, float64_copy):
    port.logits(TOKENS)
    assert held(port)["caches"] == 0
    _, cache = port.step(TOKENS, None)
    layers, keys_and_values, batch, length = CONFIG.n_layer, 2, *TOKENS.shape
    expected = layers * keys_and_values * batch * length * CONFIG.n_embd * 4
    assert held(port) == {"caches": 1, "bytes": expected}
    _, cache = port.step(TOKENS, cache)  # the old one is gone
    assert held(port) == {"caches": 1, "bytes": 2 * expected}
    _, _other = float64_copy.step(TOKENS, None)
    assert held(port)["caches"] == 2
    del cache, _other, _
    port.logits(TOKENS)
    assert held(port) == {"caches": 0, "bytes": 0}


# Gradients


@pytest.fixture(scope="module")
def gradients(float64_copy):
    return gathered(float64_copy, TOKENS)


@pytest.fixture(scope="module")
def wide():
    return {name: value.astype(np.float64) for name, value in WEIGHTS.items()}


def test_every_variable_has_a_gradient_of_its_shape(port, wide, gradients):
    shapes = {p.name: p.shape for p in port.parameters()}
    assert {name: value.shape for name, value in gradients.parameters.items()} == shapes
    assert {value.dtype for value in gradients.parameters.values()} == {np.dtype(np.float64)}
    narrow = gathered(port, TOKENS)
    assert {value.dtype for value in narrow.parameters.values()} == {np.dtype(np.float32)}
    rng = np.random.default_rng(0)
    for name, value in narrow.parameters.items():
        tensor = name.removeprefix("model/")
        direction = rng.standard_normal(WEIGHTS[tensor].shape)
        known = slope(wide, CONFIG, TOKENS, {tensor: direction}, precision=FLOAT32)
        got = float((value.reshape(direction.shape) * direction).sum())
        assert known.floors(got) <= LIMIT_FLOORS, name


@pytest.mark.parametrize("name", list(tensor_table(CONFIG)))
def test_the_directional_derivative_is_that_of_the_oracle(gradients, wide, name):
    rng = np.random.default_rng(len(name))
    gradient = gradients.parameters[f"model/{name}"].reshape(wide[name].shape)
    # Along itself it cannot hide; a random direction sees every element.
    directions = [gradient, rng.standard_normal(gradient.shape)]
    directions = [d / np.linalg.norm(d) for d in directions]
    for direction in directions:
        known = slope(wide, CONFIG, TOKENS, {name: direction})
        assert known.floors((gradient * direction).sum()) <= LIMIT_FLOORS
        # So that something is compared: a gradient off by a millionth, along itself, would be seen.
        if direction is directions[0]:
            assert known.floors((1 + 1e-6) * np.linalg.norm(gradient)) > LIMIT_FLOORS


def at_the_head(weights, row):
    """d loss / d logits of a sequence of ``TOKENS``, in closed form, and what the head is fed."""
    sites = dict(forward(weights, CONFIG, row))
    at_logits = softmax(sites["logits"][:-1])
    at_logits[np.arange(len(row) - 1), row[1:]] -= 1
    return at_logits / TOKENS[:, 1:].size, sites["ln_f"][:-1]


def test_the_part_of_the_last_product_has_a_closed_form(gradients, wide):
    shown = [at_the_head(wide, row) for row in TOKENS]
    assert_agrees(gradients.wte_output, sum(at_logits.T @ ln_f for at_logits, ln_f in shown))


def test_the_part_of_the_lookup_is_what_reaches_the_embeddings(float64_copy):
    """In one sequence, position and token rows receive the same derivatives."""
    (tokens,) = single = np.array([[4, 7, 4, 4, 100, 0]])
    gradients = gathered(float64_copy, single)
    expected = np.zeros((CONFIG.n_vocab, CONFIG.n_embd))
    np.add.at(expected, tokens, gradients.parameters["model/wpe"][: len(tokens)])
    assert_agrees(gradients.wte_input, expected)
    assert not gradients.wte_input[[1, 99]].any()


def test_both_parts_make_the_whole(gradients):
    whole = gradients.parameters["model/wte"]
    assert_agrees(gradients.wte_input + gradients.wte_output, whole)
    assert (
        distance(gradients.wte_output, whole) > 1e-2 and distance(gradients.wte_input, whole) > 1e-2
    )


def test_one_prediction_depends_on_what_came_before_it(float64_copy, wide):
    single = TOKENS[:1]
    length, total = single.shape[1], 0
    for position in range(length - 1):
        found = float64_copy.input_gradients(single, position)
        assert found.shape == (length, CONFIG.n_embd) and found.dtype == np.float64
        assert not found[position + 1 :].any()
        assert found[: position + 1].any(axis=1).all()
        total = total + found
        direction = np.zeros_like(wide["wpe"])
        direction[:length] = np.random.default_rng(position).standard_normal(found.shape)

        known = slope(wide, CONFIG, single, {"wpe": direction}, position)
        assert known.floors((found * direction[:length]).sum()) <= LIMIT_FLOORS
    whole = gathered(float64_copy, single).parameters["model/wpe"]
    assert_agrees(total / (length - 1), whole[:length])
    assert not whole[length:].any()


@pytest.mark.parametrize(
    ("tokens", "position"), [(TOKENS, 0), (TOKENS[:1], 6), (TOKENS[:1], -1), (TOKENS[:1, :1], 0)]
)
def test_what_predicts_nothing_has_no_gradient(port, tokens, position):
    with pytest.raises(PortError, match=r"is no prediction|predicts nothing"):
        port.input_gradients(tokens, position)


@pytest.mark.parametrize("tokens", [TOKENS[:, :1], TOKENS[:0]])
def test_a_loss_of_nothing_has_no_gradient(port, tokens):
    with pytest.raises(PortError, match="predicts nothing"):
        gathered(port, tokens)


def test_gradients_follow_what_was_written(port, float64_copy, gradients):
    gain = parameter(port, "ln_f/g")
    original = gain.read()
    gain.write(2 * original)
    try:
        shown = [at_the_head(weights_of(port), row) for row in TOKENS]
        found = gathered(float64_copy, TOKENS).parameters["model/ln_f/b"]
    finally:
        gain.write(original)
    assert_agrees(found, sum((at_logits @ WEIGHTS["wte"]).sum(axis=0) for at_logits, _ in shown))
    again = gathered(float64_copy, TOKENS)
    assert same_bits(again.parameters["model/ln_f/b"], gradients.parameters["model/ln_f/b"])


# Copies


def test_copies_are_models_of_their_own(port, wide, gradients):
    before = port.logits(TOKENS)
    shapes = {p.name: p.shape for p in port.parameters()}
    seen = []
    for how, copy in port.copies():
        seen.append(how)
        assert {p.name: p.shape for p in copy.parameters()} == shapes, how
        assert not {p.storage for p in copy.parameters()} & {p.storage for p in port.parameters()}
        if how == "one optimiser step":
            assert_stepped(port, copy, wide)
        else:
            assert same_bits(copy.logits(TOKENS), before), how
            for name, value in weights_of(copy).items():
                assert np.array_equal(value, WEIGHTS[name]), (how, name)
        # A write shows in the copy, and there alone.
        parameter(copy, "wte").write(2 * WEIGHTS["wte"])
        changed = weights_of(copy)
        with copy.float64() as wider:
            for row, found in zip(TOKENS, wider.logits(TOKENS), strict=True):
                assert_agrees(found, logits(changed, CONFIG, row), how)
        assert np.array_equal(weights_of(port)["wte"], WEIGHTS["wte"])
        assert copy.tying()[0]
        assert copy.training() == []
    assert seen == ["Saver", "Saver and import_meta_graph", "one optimiser step"]
    assert same_bits(port.logits(TOKENS), before)


def assert_stepped(port, copy, wide):
    """Every variable has moved down the gradient of eight tokens."""
    tokens = np.random.default_rng(0).integers(0, CONFIG.n_vocab, (1, 8), dtype=np.int32)
    gradients = gathered(port, tokens).parameters
    for p in copy.parameters():
        old = wide[p.implies].reshape(p.shape)
        step = p.read() - old
        expected = -0.1 * gradients[p.name].astype(np.float64)
        # Three roundings: of 0.1 (by a quarter of u), of the product and of the sum.
        bound = 2.0**-24 * (1.25 * np.abs(expected) + np.abs(p.read()))
        assert (np.abs(step - expected) <= bound).all(), p.name
        assert step.any(), p.name


def test_a_copy_is_released_before_the_next_is_made(port):
    copies = port.copies()
    _, first = next(copies)
    assert np.isfinite(first.logits(TOKENS)).all()
    _, second = next(copies)
    assert np.isfinite(second.logits(TOKENS)).all()
    copies.close()
    with pytest.raises(PortError, match="no model was built"):
        second.logits(TOKENS)
    assert np.isfinite(port.logits(TOKENS)).all()


def test_a_way_of_copying_that_is_not_there_is_a_reason(port, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    copies = dict(port.copies())
    assert "No such file or directory" in copies["Saver"]
    assert "No such file or directory" in copies["Saver and import_meta_graph"]
    assert not isinstance(copies["one optimiser step"], str)


# Mode and tying


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_drawn_and_one_variable_feeds_both_ends(port, float64_copy, dtype):
    """Also after decoders and gradients were added to the graph."""
    judged = {"float32": port, "float64": float64_copy}[dtype]
    assert judged.training() == []
    tied, description = judged.tying()
    assert tied and description.endswith("read the one variable model/wte")


def test_dropout_is_named():
    """In a process of its own: TensorFlow has no place in this one."""
    code = """
import json
import tensorflow as tf
from gpt_verify.engines.tensorflow.meta import drawn
with tf.Graph().as_default():
    x = tf.compat.v1.placeholder(tf.float32, [3])
    kept = tf.nn.dropout(x, rate=0.1, name="embd_dropout")
    tf.nn.dropout(x, rate=0.1, name="elsewhere")
    fixed = tf.random.stateless_uniform([3], seed=[1, 2], name="fixed")
    print(json.dumps([drawn(tensor) for tensor in (x + 1, kept, kept + fixed)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nothing, dropout, both = json.loads(done.stdout)
    assert nothing == []
    assert dropout == ["embd_dropout/random_uniform/RandomUniform (RandomUniform)"]
    assert (
        dropout[0] in both and "fixed/StatelessRandomUniformV2 (StatelessRandomUniformV2)" in both
    )


# Device


def test_without_a_gpu_cuda_is_refused(monkeypatch):
    # TensorFlow is left no GPU, also on a machine that has one.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PortError, match="openai-tf: TensorFlow sees no GPU"):
        build("openai-tf", SOURCE, None, "cuda")
