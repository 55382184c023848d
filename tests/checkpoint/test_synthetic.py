"""Synthetic weights: repeatable, and of a kind that lets no wrong operation hide."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.synthetic import convert, resolve_size, synthesize, synthetic_tensors
from gpt_verify.errors import CheckpointError, UsageError
from gpt_verify.reference import RELEASED, Config, forward, tensor_table

SMALL = Config(n_vocab=53, n_ctx=17, n_embd=24, n_head=3, n_layer=2)
CONFIGS = [
    SMALL,
    Config(n_vocab=101, n_ctx=40, n_embd=60, n_head=5, n_layer=4),
    # The proportions of 124M and of 1558M (deep and narrow), scaled down.
    Config(n_vocab=1009, n_ctx=65, n_embd=192, n_head=12, n_layer=6),
    Config(n_vocab=503, n_ctx=33, n_embd=100, n_head=5, n_layer=24),
]


@pytest.fixture(scope="module", params=[0, 1])
def seed(request):
    return request.param


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
def config(request):
    return request.param


@pytest.fixture(scope="module")
def sites(config, seed):
    """Every site of the longest sequence that the model takes."""
    tokens = np.random.default_rng(seed).integers(0, config.n_vocab, config.n_ctx)
    return dict(forward(dict(synthetic_tensors(config, seed)), config, tokens))


def test_names_and_shapes_are_those_of_the_table(config, seed):
    tensors = synthetic_tensors(config, seed)
    table = tensor_table(config)
    assert list(tensors) == list(table)
    for name, value in tensors.items():
        assert (value.shape, value.dtype) == (table[name].shape, np.float32)
        assert np.isfinite(value).all()


def test_gains_vary_about_one_and_biases_are_not_zero(config, seed):
    for name, value in synthetic_tensors(config, seed).items():
        role = tensor_table(config)[name].role
        if role == "gain":
            assert value.min() > 0
            assert abs(value.mean() - 1) < 0.3
            assert 0.1 < value.std() < 0.5
        else:
            assert np.count_nonzero(value) == value.size
            assert len(np.unique(value)) > 0.9 * min(value.size, 10_000)


def test_attention_is_far_from_uniform(config, sites):
    t = config.n_ctx
    for layer in range(config.n_layer):
        scores = sites[f"h.{layer}.attn.scores"][:, np.tri(t, dtype=bool)]
        assert 1 < scores.std() < 8
        p = sites[f"h.{layer}.attn.pattern"][:, t // 2 :]
        entropy_nats = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1).mean()
        uniform_nats = np.log(np.arange(t // 2 + 1, t + 1)).mean()
        assert entropy_nats < uniform_nats - 0.5
        # Nor does every position attend to a single one, which would hide the scores.
        assert entropy_nats > 0.1


def test_gelu_is_curved_where_it_is_used(config, sites):
    for layer in range(config.n_layer):
        assert 0.6 < sites[f"h.{layer}.mlp.pre"].std() < 2


def test_few_channels_of_the_stream_are_far_larger_than_the_others(config, sites):
    count = min(3, max(1, config.n_embd // 64))
    sizes = np.sqrt(np.mean(sites["embed"] ** 2, axis=0))
    large = np.argsort(sizes)[-count:]
    assert sizes[large].min() > 5 * np.median(sizes)
    last = np.sqrt(np.mean(sites[f"h.{config.n_layer - 1}.resid_post"] ** 2, axis=0))
    assert last[large].min() > 2 * np.median(last)


def test_in_124M_the_large_channels_are_tens_of_times_the_others():
    position = synthetic_tensors(RELEASED["124M"], 0)["wpe"][:64]
    sizes = np.sort(np.sqrt(np.mean(position**2, axis=0)))
    assert (sizes[-3:] > 20 * np.median(sizes)).all()
    assert sizes[-4] < 2 * np.median(sizes)


def test_the_stream_grows_but_does_not_explode(config, sites):
    end = sites[f"h.{config.n_layer - 1}.resid_post"]
    first, last = (np.median(np.abs(x)) for x in (sites["embed"], end))
    assert 1 < last / first < 8
    # Positions still differ from each other at the end.
    assert np.median(end.std(axis=0)) > 0.3 * last


def test_logits_predict_but_are_not_certain(sites):
    logits = sites["logits"]
    assert 1.5 < logits.std() < 6
    assert logits.std(axis=0).mean() > 0.5  # one token's logit over positions
    assert logits.std(axis=1).mean() > 1.5  # one position's logits over tokens


def test_any_tensor_can_be_made_alone_and_in_another_process():
    whole = {name: value.tobytes() for name, value in synthetic_tensors(SMALL, 7).items()}
    for name in reversed(list(whole)):
        assert synthetic_tensors(SMALL, 7)[name].tobytes() == whole[name]
    script = f"""
import hashlib
from reference import Config
from gpt_verify.checkpoint.synthetic import synthetic_tensors
value = synthetic_tensors({SMALL!r}, 7)["h1/mlp/c_fc/w"]
print(hashlib.sha256(value.tobytes()).hexdigest())
"""
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root
    ).stdout.strip()
    assert other == hashlib.sha256(whole["h1/mlp/c_fc/w"]).hexdigest()


def test_seeds_and_names_differ():
    first, second = (synthetic_tensors(SMALL, seed) for seed in (0, 1))
    assert not np.array_equal(first["wte"], second["wte"])
    assert not np.array_equal(first["h0/ln_1/b"], first["h1/ln_1/b"])


def test_scale_multiplies_all_but_the_gains():
    plain, scaled = synthetic_tensors(SMALL, 0), synthetic_tensors(SMALL, 0, scale=3.0)
    for name, value in plain.items():
        factor = 1 if name.endswith("/g") else 3
        # Up to four roundings on either side, each of 2^-24.
        assert np.allclose(scaled[name], factor * value, rtol=8 * 2.0**-24, atol=0), name


@pytest.mark.parametrize(
    ("text", "config"),
    [*RELEASED.items(), ("1558m", RELEASED["1558M"]), ("53, 17,24,3,2", SMALL)],
)
def test_sizes(text, config):
    assert resolve_size(text) == config


@pytest.mark.parametrize("text", ["", "125M", "1,2,3", "1,2,3,4,5,6", "a,b,c,d,e", "11,7,12,5,2"])
def test_impossible_sizes_are_refused(text):
    with pytest.raises(UsageError, match=r"^size "):
        resolve_size(text)


def test_both_formats_hold_the_same_bits(tmp_path):
    directories = synthesize(tmp_path / "models" / "small", SMALL, 5, format="both")
    assert [d.name for d in directories] == ["openai", "huggingface"]
    expected = synthetic_tensors(SMALL, 5)
    for directory, format in zip(directories, ("openai", "huggingface"), strict=True):
        checkpoint = open_checkpoint(directory)
        assert (checkpoint.format, checkpoint.config) == (format, SMALL)
        for name, value in expected.items():
            assert checkpoint.tensors[name].tobytes() == value.tobytes()


def test_hugging_face_alone_needs_no_framework(tmp_path):
    (directory,) = synthesize(tmp_path / "hf", SMALL, 5, format="huggingface")
    assert open_checkpoint(directory).format == "huggingface"


def test_what_cannot_be_converted_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        convert(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        synthesize(tmp_path / "file" / "out", SMALL, 0, format="huggingface")
