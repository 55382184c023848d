"""Two architectures in one reference, tied and untied: wiring, tensors, and how they are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import CONFIG
from oracle import assert_agrees, sites_of, tokens_of, weights_of

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.synthetic import resolve_size, synthetic_tensors
from gpt_verify.checkpoint.write import write_huggingface, write_openai
from gpt_verify.errors import CheckpointError, UsageError
from gpt_verify.graph.decode import decode
from gpt_verify.laws.decoding import RIGHT
from gpt_verify.reference import (
    ARCHITECTURES,
    GPT1,
    Config,
    ConfigError,
    logits,
    parameter_count,
    tensor_table,
)
from gpt_verify.reference.lens import lens
from gpt_verify.reference.ops import layer_norm
from gpt_verify.sites import before_head, beginnings, readers, sites

FIRST = replace(CONFIG, architecture="openai-gpt")
UNTIED = replace(FIRST, tied=False)
TENSORS = synthetic_tensors(FIRST, 0)


# The reference


def test_parameters_of_the_released_model():
    """transformers' documentation of openai-gpt: 116,534,784."""
    assert parameter_count(GPT1) == 116_534_784
    assert "ln_f/g" not in tensor_table(GPT1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_table_of_sites_lists_what_is_yielded_in_order(architecture: str, tied: bool):
    config = replace(CONFIG, architecture=architecture, tied=tied)
    found = sites_of(weights_of(config), config, tokens_of(config, 5))
    assert list(found) == list(sites(config))
    assert set(readers(config)) == set(tensor_table(config))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_after_a_beginning_reads_what_was_before_its_input(architecture: str):
    config = replace(CONFIG, architecture=architecture)
    order = list(sites(config))
    assert len(beginnings(config)) == config.n_layer + 1
    for name in beginnings(config):
        after = order[order.index(name) :]
        read = {x for site in after for x in sites(config)[site].inputs} - set(after)
        assert read == set(sites(config)[name].inputs) and len(read) == 1


def test_equation_2():
    """Of Radford et al. 2018: h0 = U We + Wp, h = block(h), P = softmax(h Weᵀ). With what a block
    adds set to nothing, it is two norms of the embeddings."""
    weights, tokens = weights_of(FIRST), tokens_of(FIRST, 9)
    for name in weights:
        if "c_proj" in name:
            weights[name] = 0.0 * weights[name]
    x = weights["wte"][tokens] + weights["wpe"][:9]
    for layer in range(FIRST.n_layer):
        for norm in ("ln_1", "ln_2"):
            x = layer_norm(x, *(weights[f"h{layer}/{norm}/{part}"] for part in "gb"))
    found = sites_of(weights, FIRST, tokens)
    assert_agrees(found[before_head(FIRST)], x)
    assert_agrees(found["logits"], x @ weights["wte"].T)


def test_an_untied_head_is_a_tensor_of_its_own():
    weights, tokens = weights_of(UNTIED), tokens_of(UNTIED, 9)
    tied = sites_of(weights, FIRST, tokens)
    found = sites_of(weights, UNTIED, tokens)
    assert_agrees(found["logits"], tied[before_head(FIRST)] @ weights["lm_head"].T)
    assert parameter_count(UNTIED) == parameter_count(FIRST) + FIRST.n_vocab * FIRST.n_embd


def test_what_is_no_architecture():
    with pytest.raises(ConfigError, match="'gpt3' is none of gpt2, openai-gpt"):
        replace(CONFIG, architecture="gpt3")
    with pytest.raises(ValueError, match="ln_f, which openai-gpt has not"):
        next(lens(weights_of(FIRST), FIRST, tokens_of(FIRST, 3)))


# Checkpoints


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_directory_is_read_as_it_was_written(tmp_path: Path, architecture: str, tied: bool):
    config = replace(CONFIG, architecture=architecture, tied=tied)
    tensors = synthetic_tensors(config, 0)
    write_huggingface(tmp_path, config, tensors)
    opened = open_checkpoint(tmp_path)
    assert opened.config == config
    assert list(opened.tensors) == list(tensor_table(config))
    for name in tensors:
        assert np.array_equal(opened.tensors[name], tensors[name])


def test_its_tokenizer_is_not_gpt2s(tmp_path: Path):
    write_huggingface(tmp_path, FIRST, TENSORS)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    opened = open_checkpoint(tmp_path)
    assert opened.encoder is None and opened.merges is None


def test_names_of_the_other_architecture_are_refused(tmp_path: Path):
    write_huggingface(tmp_path, FIRST, TENSORS)
    config_json = tmp_path / "config.json"
    stated = json.loads(config_json.read_text())
    stated["model_type"], stated["architectures"] = "gpt2", ["GPT2LMHeadModel"]
    del stated["afn"]
    config_json.write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=r"missing: wte\.weight.*tokens_embed"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("afn", "relu", 'afn = "relu", should be "gelu"'),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon = 1e-06, should be 1e-05"),
        ("activation_function", "gelu_new", "unknown key: activation_function"),
    ],
)
def test_another_function_is_refused(tmp_path: Path, key: str, value: object, what: str):
    write_huggingface(tmp_path, FIRST, TENSORS)
    config_json = tmp_path / "config.json"
    config_json.write_text(json.dumps({**json.loads(config_json.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(tmp_path)


def test_openais_format_has_no_other_architecture(tmp_path: Path):
    for config in (FIRST, replace(CONFIG, tied=False)):
        with pytest.raises(CheckpointError, match="OpenAI's format is that of a tied GPT-2"):
            write_openai(tmp_path / "it", config, synthetic_tensors(config, 0))


def test_sizes():
    assert resolve_size("openai-gpt") == GPT1
    assert resolve_size("openai-gpt:101,19,24,4,3") == FIRST
    with pytest.raises(UsageError, match="'gpt3' is none of"):
        resolve_size("gpt3:101,19,24,4,3")


# Decoding


@pytest.mark.parametrize("config", [CONFIG, FIRST, UNTIED], ids=["gpt2", "gpt", "untied"])
def test_decoding_in_pieces_is_the_reference(config: Config):
    """What the laws of cache and padding compare a wrong port with."""
    weights, tokens = weights_of(config), tokens_of(config, 9)
    pieces = [tokens[:4], tokens[4:5], tokens[5:]]
    assert_agrees(decode(weights, config, pieces, RIGHT), logits(weights, config, tokens))
