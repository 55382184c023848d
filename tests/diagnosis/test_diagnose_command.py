"""``gpt-verify diagnose``: what is wrong is named, and shown to be all that is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import CONFIG, TESTS, checkpoint

from gpt_verify.checkpoint.synthetic import synthesize
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.command.cli import main

PORTS = f"""
import sys
from dataclasses import replace
from gpt_verify.numerics.precision import BFLOAT16
sys.path.append({str(TESTS / "faults")!r})
from fault_ports import injected

def make(*faults, only=False, more=None):
    def factory(checkpoint):
        port = injected(checkpoint, *faults)
        if more:
            more(port.module)
        return (lambda tokens: port.logits(tokens)) if only else port.module
    return factory

def bent(model):
    def merge(x):
        y = x.transpose(1, 2).flatten(-2)
        return y + 0.01 * y.abs()
    model.h[1].attn.merge = merge

def of_another(checkpoint):
    # One tensor is damaged, and the port says itself which parameter is which tensor.
    w = checkpoint.tensors["h1/mlp/c_fc/w"]
    damaged = {{**checkpoint.tensors, "h1/mlp/c_fc/w": BFLOAT16.round(w)}}
    return injected(replace(checkpoint, tensors=damaged))

def fails(checkpoint):
    raise OSError("no such device")

every = range({CONFIG.n_layer})
correct, correct_logits = make(), make(only=True)
erf = make(("gelu-erf", every))
erf_logits = make(("gelu-erf", every), only=True)
one_logits = make(("gelu-relu", [1]), only=True)
half_table_logits = make(("gelu-half-table", every), only=True)
half_table = make(("gelu-half-table", every))
two = make(("gelu-scale-0.79788", [0]), ("norm-eps-1e-6", [2]))
rounded = make(("weights-bfloat16", every))
unknown = make(more=bent)
known_and_unknown = make(("gelu-erf", [2]), more=bent)
unknown_logits = make(more=bent, only=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("diagnose")
    synthesize(directory / "model", CONFIG, 0)
    (directory / "ports.py").write_text(PORTS)
    return directory


def diagnosed(place: Path, name: str, *more: str) -> tuple[int, dict[str, Any]]:
    out = place / f"{name}.json"
    words = ["diagnose", "--checkpoint", str(place / "model"), "--port", f"{place}/ports.py:{name}"]
    status = main([*words, "--length", "1", "--length", "17", "--json", str(out), *more])
    return status, json.loads(out.read_text())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("erf", "gelu-erf in all layers"),
        ("erf_logits", "gelu-erf in all layers"),
        ("one_logits", "gelu-relu in layer 1"),
        ("half_table", "gelu-half-table in all layers"),
        ("two", "gelu-scale-0.79788 in layer 0 and norm-eps-1e-6 in layer 2"),
    ],
)
def test_apart_from_it_the_port_is_right(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, what: str
) -> None:
    status, report = diagnosed(place, name)
    said = capsys.readouterr().out
    assert status == 1
    assert said.splitlines()[0] == (
        f"{place}/ports.py:{name}: apart from {what}, this port is GPT-2 to within its floor"
    )
    assert report["complete"]
    assert report["left_over"] == []
    proof = report["proof"]
    assert proof["holds"]
    page = (TESTS.parent / "docs" / "report.md").read_text()
    assert [key for key in (*report, *proof, *report["port"]) if f"`{key}`" not in page] == []
    assert 0 < proof["worst"]["floors"] <= proof["limit"]
    assert "the port agrees with a reference that has" in said
    if "logits" not in name:
        assert proof["precision"] == "float64"
        assert len(proof["floors"]) == 2 + 1 + 12 * CONFIG.n_layer


def test_damaged_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference is given the port's own tensors, once each is explained."""
    status, report = diagnosed(place, "rounded")
    assert status == 1
    assert report["complete"], capsys.readouterr().out
    assert report["planted"][0]["tensors"]
    assert report["statement"].endswith("this port is GPT-2 to within its floor")


def test_a_port_that_was_made_of_other_weights(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own matching is by those weights, and says nothing of how it differs from these."""
    status, report = diagnosed(place, "of_another")
    said = capsys.readouterr().out
    assert status == 1
    assert "apart from weights-bfloat16 of h1/mlp/c_fc/w, this port is GPT-2" in said
    assert report["complete"], said


@pytest.mark.parametrize("name", ["correct", "correct_logits"])
def test_nothing_to_explain(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, report = diagnosed(place, name, "--quiet")
    assert status == 0
    assert capsys.readouterr().out == (
        f"{place}/ports.py:{name}: nothing to explain: this port is GPT-2 to within its floor\n"
    )
    assert (report["verdict"], report["causes"], report["proof"]) == ("verified", [], None)


def test_unexplained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention's output with a bend at 0 is no fault of the catalogue."""
    status, report = diagnosed(place, "unknown")
    said = capsys.readouterr().out
    assert status == 1
    assert said.splitlines()[0].endswith(": unexplained")
    (explanation,) = [e for e in report["explanations"] if not e["accepted"]]
    assert explanation["where"] == "h.1.attn.mix"
    assert len(explanation["nearest"]) == 3
    assert all(near["leaves"] > explanation["limit"] for near in explanation["nearest"])
    assert "h.1.attn.mix: score" in said
    assert report["left_over"]
    assert not report["complete"]


def test_explained_in_part(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is known is named, and is shown not to be all."""
    status, report = diagnosed(place, "known_and_unknown")
    said = capsys.readouterr().out
    assert status == 1
    assert "explained in part, by gelu-erf in layer 2; something else is wrong" in said
    assert report["port"]["explained_by"] == ["gelu-erf"]
    assert not report["proof"]["holds"]
    assert "the port does not agree with a reference that has gelu-erf in layer 2" in said
    assert report["left_over"]


def test_unexplained_from_logits(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = diagnosed(place, "unknown_logits")
    said = capsys.readouterr().out
    assert status == 1
    assert report["causes"] == []
    assert "noise floors are left; nearest: " in said


def test_a_quantising_fault_is_not_followed_through_logits(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = diagnosed(place, "half_table_logits")
    assert status == 1
    assert report["port"]["explained_by"] == ["gelu-half-table"]
    assert "whether anything else is wrong was not shown" in capsys.readouterr().out
    assert (report["proof"], report["complete"]) == (None, False)


def test_what_cannot_be_judged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = diagnosed(place, "fails", "--quiet")
    assert status == 2
    assert report["verdict"] == "unjudged"
    assert "could not be judged" in capsys.readouterr().out


@pytest.mark.parametrize("ports", [[], ["--port", "huggingface"]])
def test_one_port(capsys: pytest.CaptureFixture[str], ports: list[str]) -> None:
    assert main(["diagnose", *ports]) == 2
    assert "diagnose takes one --port" in capsys.readouterr().err


def test_a_name_that_stands_for_one_port(tmp_path: Path, capsys: Any) -> None:
    """transformers has one attention for the first GPT, and so ``huggingface`` is one port."""
    config = replace(CONFIG, architecture="openai-gpt")
    write_huggingface(tmp_path / "gpt", config, checkpoint(config).tensors)
    words = ["diagnose", "--checkpoint", str(tmp_path / "gpt"), "--port", "huggingface"]
    status = main([*words, "--length", "9"])
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    assert "huggingface-eager: nothing to explain" in said.out


def test_json_on_standard_output(place: Path, capfdbinary: Any) -> None:
    words = ["diagnose", "--checkpoint", str(place / "model"), "--port", f"{place}/ports.py:erf"]
    assert main([*words, "--length", "9", "--json", "-"]) == 1
    out, err = capfdbinary.readouterr()
    assert json.loads(out)["complete"]
    assert b"apart from gelu-erf" in err
