"""What ``import gpt_verify`` gives to whoever has a port in memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint

import gpt_verify as gv


def _module(source: gv.Checkpoint) -> Any:
    from gpt_verify.ports.huggingface import huggingface

    module: Any = huggingface(source, "eager").module  # type: ignore[attr-defined]
    return lambda ids: module(ids).logits, module


class Halved(gv.Port):
    """A port of its own, whose logits are half of what they should be."""

    name = "halved"

    def __init__(self, source: gv.Checkpoint) -> None:
        self._logits, _ = _module(source)

    def logits(self, tokens: Any) -> Any:
        with torch.no_grad():
            return self._logits(torch.as_tensor(tokens)).numpy() / 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gpt_verify.checkpoint.write import write_huggingface

    written = tmp_path_factory.mktemp("face") / "huggingface"
    made = checkpoint()
    write_huggingface(written, made.config, made.tensors)
    return written


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = (
        "import sys, gpt_verify\n"
        "heavy = {'numpy', 'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'Port' in dir(gpt_verify) and gpt_verify.Port.__name__ == 'Port'\n"
        "assert not {'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    for name in gv.__all__:
        assert getattr(gv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tun'"):
        gv.tun  # type: ignore[attr-defined]  # noqa: B018


def test_a_module_from_memory(directory: Any) -> None:
    _, module = _module(gv.open_checkpoint(directory))
    report = gv.run(module, directory, lengths=[5])
    (port,) = report.ports
    assert (port.name, port.error, port.verdict) == ("GPT2LMHeadModel", None, gv.Verdict.VERIFIED)
    assert "h.0.ln_1" in {f.site for f in port.findings if f.status is gv.Status.PASSED}


def test_a_module_with_a_fault_is_refuted_where_it_is(directory: Any) -> None:
    _, module = _module(gv.open_checkpoint(directory))
    module.transformer.h[1].mlp.act = torch.nn.GELU()
    (port,) = gv.run(module, directory, lengths=[5]).ports
    assert (port.verdict, port.first_divergence) == (gv.Verdict.REFUTED, "h.1.mlp.act")


def test_a_function_and_a_port_in_one_run(directory: Any) -> None:
    source = gv.open_checkpoint(directory)
    logits, _ = _module(source)

    def right(tokens: Any) -> Any:
        with torch.no_grad():
            return logits(torch.as_tensor(np.asarray(tokens))).numpy()

    report = gv.run([right, Halved(source), right], directory, lengths=[5])
    assert [port.name for port in report.ports] == ["right", "halved", "right 2"]
    verified, refuted = gv.Verdict.VERIFIED, gv.Verdict.REFUTED
    assert [port.verdict for port in report.ports] == [verified, refuted, verified]


def test_what_is_no_port_is_an_error_in_the_report(directory: Any) -> None:
    (port,) = gv.run(gv.IGNORED, directory, lengths=[5]).ports  # type: ignore[arg-type]
    assert port.verdict is gv.Verdict.UNJUDGED
    assert port.error is not None and "returned int" in port.error
