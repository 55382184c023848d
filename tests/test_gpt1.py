"""The first GPT: the reference's other architecture, read, judged, and told from GPT-2."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command import command
from models import CONFIG, INPUTS, TESTS, checkpoint, failed, failed_laws, finding, judged, statuses
from oracle import assert_agrees, sites_of, tokens_of, weights_of

from reference import ARCHITECTURES, GPT1, Config, ConfigError, parameter_count, tensor_table
from reference.lens import lens
from reference.ops import layer_norm
from verify.checkpoint import Checkpoint, open_checkpoint
from verify.checkpoint.synthetic import resolve_size, synthetic_tensors
from verify.checkpoint.write import write_huggingface, write_openai
from verify.errors import CheckpointError, UsageError
from verify.faults.catalogue import CATALOGUE, faults_of
from verify.faults.oracle import run
from verify.findings import PortReport, Status, Verdict
from verify.judge import judge
from verify.run import Silent
from verify.sites import before_head, beginnings, readers, sites

FIRST = replace(CONFIG, architecture="openai-gpt")
UNTIED = replace(FIRST, tied=False)
PORTS = f"{TESTS}/gpt1_ports.py"


@cache
def source(config: Config = FIRST) -> Checkpoint:
    return checkpoint(config)


@cache
def report(name: str, config: Config = FIRST) -> PortReport:
    """By every law."""
    return judged(f"{PORTS}:{name}", source(config))


@cache
def wrong(name: str, config: Config = FIRST) -> PortReport:
    """By weights, sites and logits, which is what names a mistake."""
    spec = f"{PORTS}:{name}"
    return judge(spec, source(config), INPUTS, None, "cpu", Silent(), laws=["tying.value"])


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
    write_huggingface(tmp_path, FIRST, source().tensors)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    opened = open_checkpoint(tmp_path)
    assert opened.encoder is None and opened.merges is None


def test_names_of_the_other_architecture_are_refused(tmp_path: Path):
    write_huggingface(tmp_path, FIRST, source().tensors)
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
    write_huggingface(tmp_path, FIRST, source().tensors)
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


# Ports


@pytest.mark.parametrize("name", ["right", "functional"])
@pytest.mark.parametrize("config", [FIRST, UNTIED], ids=["tied", "untied"])
def test_a_right_port_is_verified(name: str, config: Config):
    found = report(name, config)
    assert found.verdict is Verdict.VERIFIED, failed_laws(found)
    for law in ("architecture", "activations.local"):
        shown = statuses(found, law)
        hidden = {site for site, status in shown.items() if status is Status.NOT_EXAMINED}
        fused = {s for s in shown if s and s.endswith((".scores", ".pattern"))}
        assert hidden == (fused if name == "functional" else set())
    assert set(statuses(found, "lens").values()) == {Status.NOT_EXAMINED}
    assert "openai-gpt does not have" in finding(found, "lens", "embed").message


def test_of_an_untied_checkpoint_the_law_of_tying_says_so():
    found = report("right", UNTIED)
    laws = {f.id for f in found.findings if f.id.startswith("tying.")}
    assert len(laws) == 5
    for law in laws:
        assert finding(found, law, "logits").status is Status.NOT_EXAMINED
        assert "not tied" in finding(found, law, "logits").message
    assert finding(found, "weights.values", "logits").status is Status.PASSED


def test_a_gpt2_with_a_head_of_its_own():
    """Untied is a configuration of either architecture; the lens goes through the own head."""
    found = judged("huggingface-eager", source(replace(CONFIG, tied=False)))
    assert found.verdict is Verdict.VERIFIED, failed_laws(found)
    assert set(statuses(found, "lens").values()) == {Status.PASSED}
    assert finding(found, "tying.value", "logits").status is Status.NOT_EXAMINED


@pytest.mark.parametrize(
    ("name", "site", "fault"),
    [
        ("norms_first", "h.0.attn.qkv", "norm-pre"),
        ("second_for_first", "h.0.attn.qkv", "norm-pre"),
        ("final_norm", f"h.{CONFIG.n_layer - 1}.ln_2", "norm-final-added"),
        ("own_head", "logits", "head-untied"),
        ("exact_gelu", "h.0.mlp.act", "gelu-erf"),
        ("small_epsilon", "h.0.ln_1", "norm-eps-1e-6"),
        ("unscaled_scores", "h.0.attn.scores", "attention-scale-missing"),
        ("shifted_positions", "embed", "weights-rows-shifted"),
        ("function_norms_first", "logits", "norm-pre"),
        ("function_exact_gelu", "logits", "gelu-erf"),
    ],
)
def test_a_wrong_port_is_refuted_where_it_is_wrong(name: str, site: str, fault: str):
    found = wrong(name)
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == site
    assert fault in found.explained_by


def test_logits_alone():
    assert report("function").verdict is Verdict.VERIFIED


def test_a_tied_port_of_an_untied_checkpoint_is_refuted():
    found = wrong("reads_its_table_twice", UNTIED)
    assert found.verdict is Verdict.REFUTED
    assert failed(found, "weights.values", "architecture") == {"logits"}
    assert "lm_head" in finding(found, "weights.accounted").message


def test_against_gpt2_it_is_refuted():
    found = wrong("first_for_second", CONFIG)
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == "h.0.ln_1"
    assert "norm-post" in found.explained_by


def test_a_port_without_this_architecture_says_so():
    for name in ("huggingface-sdpa", "compiled"):
        found = judged(name, source())
        assert found.verdict is Verdict.UNJUDGED
        assert found.error == f"{name}: has no openai-gpt, which the checkpoint is"


# Faults


def test_every_fault_that_it_can_have_reads_what_is_there():
    """And none is of blocks that norm first, whose wiring would make no sense here."""
    faults = faults_of(FIRST)
    assert {"norm-pre", "norm-final-added", "gelu-erf"} <= set(faults)
    assert "norm-post" not in faults and "norm-pre" not in faults_of(CONFIG)
    assert set(faults) | set(faults_of(CONFIG)) == set(CATALOGUE)
    tensors, tokens = source().tensors, tokens_of(FIRST, 5)
    for fault in faults.values():
        with np.errstate(all="ignore"):
            made = run(lambda n: tensors[n], FIRST, tokens, fault.overrides(FIRST), keep=None)
            assert list(dict(made)) == list(sites(FIRST)), fault.name


# The command


def test_from_a_synthetic_directory_to_the_verdict(tmp_path: Path):
    out = tmp_path / "gpt"
    sizes = "openai-gpt:101,19,24,4,2"
    done = command("synth", out, "--size", sizes, "--format", "huggingface")
    assert done.returncode == 0, done.stderr
    json_file = tmp_path / "report.json"
    done = command(
        "run", "--checkpoint", out, "--port", "huggingface", "--length", 7, "--json", json_file
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(openai-gpt, vocab 101, ctx 19" in done.stdout
    found = json.loads(json_file.read_text())
    assert [port["name"] for port in found["ports"]] == ["huggingface-eager"]
    assert found["checkpoint"]["architecture"] == "openai-gpt"
    assert found["checkpoint"]["tied"] is True


def test_the_lens_says_that_it_has_nothing_to_go_through(tmp_path: Path):
    write_huggingface(tmp_path, FIRST, source().tensors)
    done = command("lens", "--checkpoint", tmp_path, "--tokens", "1,2,3")
    assert done.returncode == 2
    assert "ln_f, which openai-gpt does not have" in done.stderr
