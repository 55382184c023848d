"""What a factory makes of ``--dtype``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from models import checkpoint

from gpt_verify.errors import PortError
from gpt_verify.port import Dtype
from gpt_verify.ports.registry import build

PORT = """
import numpy as np
import gpt_verify as gv


class Plain(gv.Port):
    def __init__(self, checkpoint, dtype):
        self.name, self.dtype, self.vocabulary = "plain", dtype, checkpoint.config.n_vocab

    def logits(self, tokens):
        return np.zeros((*tokens.shape, self.vocabulary), np.float32)


def float32(checkpoint):
    return Plain(checkpoint, "float32")


def any_precision(checkpoint, *, dtype=None):
    return Plain(checkpoint, dtype or "float16")


def others(checkpoint, **more):
    assert not more
    return Plain(checkpoint, "bfloat16")
"""


@pytest.fixture
def spec(tmp_path: Path) -> Callable[[str], str]:
    file = tmp_path / "my_port.py"
    file.write_text(PORT)
    return lambda factory: f"{file}:{factory}"


@pytest.mark.parametrize(
    ("factory", "asked", "judged_in"),
    [
        ("float32", None, "float32"),
        ("float32", "float32", "float32"),
        ("any_precision", None, "float16"),
        ("any_precision", "bfloat16", "bfloat16"),
        ("others", "bfloat16", "bfloat16"),
    ],
)
def test_a_port_is_judged_in_what_was_asked_for(
    factory: str, asked: Dtype | None, judged_in: str, spec: Callable[[str], str]
) -> None:
    assert build(spec(factory), checkpoint(), asked, "cpu").dtype == judged_in


@pytest.mark.parametrize(
    ("factory", "asked", "computes"),
    [("float32", "bfloat16", "float32"), ("others", "float16", "bfloat16")],
)
def test_or_it_is_refused(
    factory: str, asked: Dtype, computes: str, spec: Callable[[str], str]
) -> None:
    with pytest.raises(PortError, match=f"computes in {computes}; {asked} was asked for"):
        build(spec(factory), checkpoint(), asked, "cpu")
