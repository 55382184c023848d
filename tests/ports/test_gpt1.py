"""Ports of the first GPT: judged by every law, and told from GPT-2."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command import command, complaint
from models import CONFIG, INPUTS, TESTS, checkpoint, failed, failed_laws, finding, judged, statuses
from oracle import tokens_of

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.graph.run import run
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.catalogue import CATALOGUE, faults_of
from gpt_verify.laws.symmetry.transforms import normed
from gpt_verify.reference import Config
from gpt_verify.sites import sites

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


# Laws


def test_what_is_shifted_is_what_layer_norms_read():
    assert normed(CONFIG, "embed") and normed(CONFIG, "h.1.mlp.out")
    assert not normed(FIRST, "embed")
    assert normed(FIRST, "h.0.attn.out") and normed(FIRST, "h.1.mlp.out")
    spec = f"{PORTS}:uncentred"
    found = judge(spec, source(), INPUTS, None, "cpu", Silent(), laws=["symmetry.shift"])
    assert finding(found, "symmetry.shift").status is Status.FAILED
    assert finding(report("right"), "symmetry.shift").status is Status.PASSED


# Faults


def test_every_fault_that_it_can_have_reads_what_is_there():
    """And none is of blocks that norm first, whose wiring would make no sense here."""
    faults = faults_of(FIRST)
    assert {"norm-pre", "norm-final-added", "gelu-erf"} <= set(faults)
    assert "norm-post" not in faults and "norm-pre" not in faults_of(CONFIG)
    others = set(CATALOGUE) - set(faults) - set(faults_of(CONFIG))
    assert others and all(CATALOGUE[name].in_family is not None for name in others)
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


@pytest.mark.parametrize("words", [("claims", "tie-shapes"), ("power", "--fault", "gelu-erf")])
def test_what_is_about_gpt2_says_so(tmp_path: Path, words: tuple[str, ...]):
    write_huggingface(tmp_path, FIRST, source().tensors)
    done = command(*words, "--checkpoint", tmp_path)
    assert done.returncode == 2
    assert complaint(done.stderr).endswith("about a tied GPT-2 alone")


def test_the_lens_says_that_it_has_nothing_to_go_through(tmp_path: Path):
    write_huggingface(tmp_path, FIRST, source().tensors)
    done = command("lens", "--checkpoint", tmp_path, "--tokens", "1,2,3")
    assert done.returncode == 2
    assert "ln_f, which openai-gpt does not have" in done.stderr
