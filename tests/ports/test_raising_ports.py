"""Ports that raise on an input that every GPT-2 takes: the law that asked fails, the rest is
judged."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
from models import INPUTS, TESTS, checkpoint, failed_laws, finding, judged
from torch import nn
from torch_styles import FusedBlock, Model

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Status, Verdict
from gpt_verify.ports.callable import CallablePort
from gpt_verify.ports.remote.process import ProcessPort

BROKEN = TESTS / "broken_ports.py"
HERE = "test_raising_ports"
SOURCE = checkpoint()


class FromOne(Model):
    """Positions from 1."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]) + 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


def from_one(checkpoint: Checkpoint) -> nn.Module:
    return FromOne(checkpoint, FusedBlock)


def from_one_as_a_function(checkpoint: Checkpoint) -> CallablePort:
    model = from_one(checkpoint).eval()
    return CallablePort(lambda tokens: model(torch.as_tensor(tokens)), "function", None)


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS[::-1]], ids=["shortest first", "longest first"])
class TestPositionsFromOne:
    def test_module(self, inputs: list) -> None:
        report = judged(f"{HERE}:from_one", SOURCE, inputs)
        assert report.error is None
        assert report.first_divergence == "embed"
        assert report.explained_by == ("embeddings-positions-from-1",)
        assert "positions.limit" in failed_laws(report)
        assert "raised IndexError" in finding(report, "logits", "logits").message

    def test_function(self, inputs: list) -> None:
        report = judged(f"{HERE}:from_one_as_a_function", SOURCE, inputs)
        assert report.error is None
        assert report.explained_by == ("embeddings-positions-from-1",)
        found = finding(report, "logits", "logits")
        assert found.status is Status.FAILED
        assert "raised IndexError: index out of range in self [length 19: 19 token" in found.message
        assert found.score is not None
        assert "raised IndexError" in finding(report, "positions.limit").message
        assert finding(report, "batch").status is Status.PASSED


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("whole_context", "raised IndexError: out of range [length 19: 19 tokens]; "),
        ("one_token", "raised ValueError: too short [length 1: 1 tokens]; "),
        ("batches", "raised RuntimeError: shapes differ [2 × 11: 11 tokens in 2 rows]; "),
    ],
)
def test_what_raises_on_some_inputs_is_refuted(factory: str, says: str) -> None:
    report = judged(f"{BROKEN}:{factory}", SOURCE)
    assert report.error is None
    assert report.verdict is Verdict.REFUTED
    found = finding(report, "logits", "logits")
    assert says in found.message
    assert found.score is not None
    assert found.score < found.limit  # what it returned is right


def test_a_token() -> None:
    """Whichever law is the first to ask about it."""
    report = judged(f"{BROKEN}:some_token", SOURCE)
    assert report.error is None
    assert report.verdict is Verdict.REFUTED


@pytest.mark.parametrize("factory", ["no_room", "no_room_in_words", "cut_off", "once", "gone"])
def test_what_says_nothing_of_the_port_ends_the_run(factory: str) -> None:
    report = judged(f"{BROKEN}:{factory}", SOURCE)
    assert report.error is not None
    assert report.verdict is Verdict.UNJUDGED


ANSWERS = """
import json, sys
sys.path[:0] = {path!r}
from models import checkpoint
from broken_ports import _correct
import numpy as np
source = checkpoint()
for line in sys.stdin:
    tokens = np.array(json.loads(line)["tokens"])
    if tokens.shape[1] == 19:
        print(json.dumps({{"error": "index out of range"}}), flush=True)
    else:
        print(json.dumps({{"logits": _correct(source, tokens).tolist()}}), flush=True)
"""


def refusing(checkpoint: Checkpoint) -> ProcessPort:
    path = os.environ["REFUSING"]
    return ProcessPort(f"{sys.executable} {path}", checkpoint, "refusing", None)


def test_a_program_that_refuses(tmp_path, monkeypatch) -> None:
    program = tmp_path / "program.py"
    program.write_text(ANSWERS.format(path=[str(TESTS), *sys.path]))
    monkeypatch.setenv("REFUSING", str(program))
    report = judged(f"{HERE}:refusing", SOURCE)
    assert report.error is None
    assert failed_laws(report) >= {"logits", "positions.limit"}
    assert "index out of range" in finding(report, "positions.limit").message
    assert np.isfinite(report.logits_floors)
