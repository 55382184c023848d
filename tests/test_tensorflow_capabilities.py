"""What OpenAI's graph can do besides its forward pass: trained, decoded with, copied."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, checkpoint
from oracle import assert_agrees

from reference import logits, tensor_table
from verify.checkpoint import Checkpoint
from verify.checks.subject import same_bits
from verify.errors import PortError
from verify.ports.openai_tf import openai_tf

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
