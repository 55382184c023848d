"""What is said of an exception in a port: all of it, and the line of the port's own code."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Run

PORT = """
import torch
from torch import nn


def not_loaded(checkpoint):
    module = nn.Linear(2, 3)
    module.load_state_dict({"weight": torch.zeros(4, 4), "other": torch.zeros(1)})
    return module


class Untransposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(5, 7)

    def forward(self, ids):
        x = torch.zeros(*ids.shape, 7)
        return self.up(x)


def untransposed(checkpoint):
    return Untransposed()


def text(checkpoint):
    return "a port"
"""
LINES = PORT.splitlines()


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_port.py").write_text(PORT)
    return "my_port.py"


def _line(text: str) -> int:
    (found,) = (number for number, line in enumerate(LINES, 1) if text in line)
    return found


def test_the_cause_below_the_first_line_and_the_line_of_the_factory(run: Run, spec: str) -> None:
    status, out, err = run("--port", f"{spec}:not_loaded", port=None)
    assert status == 2
    for said in (out, err):
        assert (
            'Missing key(s) in state_dict: "bias". Unexpected key(s) in state_dict: "other".'
            in said
        )
        assert f"(my_port.py:{_line('load_state_dict')})" in said
    assert "--debug shows the traceback" in out


def test_the_line_of_the_forward_pass(run: Run, spec: str) -> None:
    status, out, _ = run("--port", f"{spec}:untransposed", port=None)
    assert status == 1  # its weights are not the checkpoint's
    assert "shapes cannot be multiplied" in out
    assert f"(my_port.py:{_line('return self.up(x)')})" in out
    assert "--debug shows the traceback" in out


def test_a_file_that_was_meant_where_a_module_is_named(run: Run, spec: str) -> None:
    status, out, _ = run("--port", "my_port:untransposed", port=None)
    assert status == 2
    assert "importing my_port raised ModuleNotFoundError" in out
    assert "; did you mean my_port.py?" in out


def test_what_this_package_refuses_needs_no_traceback(run: Run, spec: str) -> None:
    status, out, _ = run("--port", f"{spec}:text", port=None)
    assert status == 2
    assert "the factory returned str" in out
    assert "--debug" not in out
