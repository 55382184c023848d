"""The checkpoint that ships: intact in both formats, and trained to do what it is there for.

Faults show only where a model uses what they break. So the shipped weights must look further back
than one token (prose) and far back (copying), or a port could get attention wrong unnoticed.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.reference import logits, parameter_count, tensor_table
from gpt_verify.reference.bpe import BPE
from gpt_verify.reference.loss import token_losses_nats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import default_evaluation as evaluation  # beside the training script, not installed
import default_text as text


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return open_checkpoint(default_checkpoint())


@pytest.fixture(scope="module")
def weights(shipped: Checkpoint) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in shipped.tensors.items()}


@pytest.fixture(scope="module")
def bpe(shipped: Checkpoint) -> BPE:
    assert shipped.encoder is not None and shipped.merges is not None
    return text.read_bpe(shipped.encoder, shipped.merges)


@pytest.fixture(scope="module")
def chapters() -> tuple[list[str], list[str]]:
    """(training, held out)."""
    return text.split_chapters(text.load_chapters())


def test_both_formats_hold_the_same_bits(shipped: Checkpoint) -> None:
    other = open_checkpoint(default_checkpoint("huggingface"))
    assert (shipped.format, other.format) == ("openai", "huggingface")
    assert other.config == shipped.config
    assert set(other.tensors) == set(shipped.tensors) == set(tensor_table(shipped.config))
    for name, spec in tensor_table(shipped.config).items():
        ours, theirs = shipped.tensors[name], other.tensors[name]
        assert ours.dtype == theirs.dtype == np.float32, name
        assert ours.shape == theirs.shape == spec.shape, name
        assert ours.tobytes() == theirs.tobytes(), name


def test_no_tensor_is_left_as_it_was_initialised(shipped: Checkpoint) -> None:
    """A gain of ones or a bias of zeros would hide a port that forgets it."""
    for name, spec in tensor_table(shipped.config).items():
        value = shipped.tensors[name]
        assert np.isfinite(value).all(), name
        if spec.role in ("gain", "bias"):
            start = 1.0 if spec.role == "gain" else 0.0
            assert np.mean(value != start) == 1.0, name
            assert np.std(value) > 1e-3, name


def test_no_two_dimensions_of_a_matrix_are_equal_except_the_square_projection(
    shipped: Checkpoint,
) -> None:
    """So that a transposed matrix cannot pass for the matrix; c_proj is square in every GPT-2."""
    c = shipped.config
    assert len({c.n_vocab, c.n_ctx, c.n_embd, 3 * c.n_embd, 4 * c.n_embd}) == 5
    assert parameter_count(c) == sum(value.size for value in shipped.tensors.values())


def test_vocabulary_is_in_openais_format(shipped: Checkpoint) -> None:
    assert shipped.encoder is not None and shipped.merges is not None
    ids = json.loads(shipped.encoder.read_text("utf-8"))
    merges = [tuple(line.split()) for line in shipped.merges.read_text("utf-8").splitlines()[1:]]
    assert shipped.merges.read_text("utf-8").startswith("#version: 0.2\n")
    assert sorted(ids.values()) == list(range(shipped.config.n_vocab))
    assert [ids[symbol] for symbol in text.byte_symbols()] == list(range(256))
    assert [ids[a + b] for a, b in merges] == list(range(256, shipped.config.n_vocab - 1))
    assert ids["<|endoftext|>"] == shipped.config.n_vocab - 1
    beside = default_checkpoint("huggingface")
    assert (beside / "vocab.json").read_bytes() == shipped.encoder.read_bytes()
    assert (beside / "merges.txt").read_bytes() == shipped.merges.read_bytes()


def test_vocabulary_is_the_one_that_the_script_learns(
    shipped: Checkpoint, chapters: tuple[list[str], list[str]]
) -> None:
    """The first merges again, from the text: the committed files are the script's own."""
    assert shipped.merges is not None
    lines = shipped.merges.read_text("utf-8").splitlines()[1:51]
    assert [" ".join(merge) for merge in text.learn_merges(chapters[0], 50)] == lines


def test_repeated_random_tokens_are_copied(
    shipped: Checkpoint, weights: dict[str, np.ndarray]
) -> None:
    first, second = evaluation.copying(weights, shipped.config)
    chance = math.log(shipped.config.n_vocab)
    # Tokens drawn uniformly cannot be foreseen: no model has an expected loss below ln V on them.
    # 0.3 is room for the draw. A first half below that would mean that the measurement leaks.
    assert first > chance - 0.3
    # The correct token gets a geometric mean probability above 1/e, 700 times chance.
    assert second < 1.0


def test_a_made_up_name_in_prose_is_copied(
    shipped: Checkpoint, weights: dict[str, np.ndarray], bpe: BPE
) -> None:
    """Its first token announces the others, and only the earlier occurrence tells which."""
    losses = evaluation.rare_name(weights, shipped.config, bpe)
    assert len(losses) > 2
    once, twice = np.mean(losses[1:], axis=0)
    # Two nats make the correct token seven times as probable. Nothing else has changed.
    assert once - twice > 2.0


def test_held_out_text_is_predicted_better_than_by_counting_pairs(
    shipped: Checkpoint,
    weights: dict[str, np.ndarray],
    bpe: BPE,
    chapters: tuple[list[str], list[str]],
) -> None:
    rows, length = 16, shipped.config.n_ctx
    train, held_out = (text.encode_documents(bpe, part) for part in chapters)
    windows = held_out[: rows * length].reshape(rows, length)
    counts = evaluation.pair_counts(train, shipped.config.n_vocab)
    better = [
        evaluation.kneser_ney(counts, window, discount=0.7)  # the best: see --evaluate
        - token_losses_nats(logits(weights, shipped.config, window), window)
        for window in windows
    ]
    # Token by token, the same tokens for both. Three standard errors: a model that used one token
    # of context could at best be level, and would pass once in 700 draws of the text.
    assert np.mean(better) > 3 * np.std(better) / math.sqrt(np.size(better))
