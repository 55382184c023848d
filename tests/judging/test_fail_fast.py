"""``--fail-fast``: the first failure is all that is found, and it is found as without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import PORTS, Run

from gpt_verify.findings import PortReport, Status
from gpt_verify.judging.examination import STOPPED
from gpt_verify.judging.options import Options
from gpt_verify.judging.run import run_request
from gpt_verify.judging.selection import request

GELU = """
import torch
from gpt_verify.ports.registry import build
from gpt_verify.port import Port

def factory(checkpoint):
    port = build("huggingface-eager", checkpoint, None, "cpu")
    for block in port.module.transformer.h:
        block.mlp.act = torch.nn.GELU()
    return port
"""


def judged(checkpoint: Path, spec: str, fail_fast: bool) -> PortReport:
    asked = request(checkpoint, [spec], Options(lengths=(3, 7, 11)))
    return run_request(asked, fail_fast=fail_fast).ports[0]


def test_it_stops_at_the_first_site_that_fails(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "erf.py").write_text(GELU, encoding="utf-8")
    spec = f"{tmp_path / 'erf.py'}:factory"
    whole, fast = (judged(tiny, spec, fail_fast) for fail_fast in (False, True))
    assert fast.first_divergence == whole.first_divergence == "h.0.mlp.act"
    assert fast.explained_by == whole.explained_by == ("gelu-erf",)
    assert {f.id for f in fast.findings if f.status is Status.FAILED} == {"architecture"}
    left = [f for f in fast.findings if f.status is Status.NOT_EXAMINED]
    assert {f.message for f in left if f.id in ("cache", "logits", "lens")} == {STOPPED}


def test_a_correct_port_is_judged_whole(tiny: Path) -> None:
    whole, fast = (judged(tiny, "huggingface-eager", fail_fast) for fail_fast in (False, True))
    assert [(f.id, f.site, f.status) for f in fast.findings] == [
        (f.id, f.site, f.status) for f in whole.findings
    ]


def test_a_law_that_fails_is_the_last(tiny: Path) -> None:
    report = judged(tiny, f"{PORTS}:twice_too_large", fail_fast=True)
    assert [f.id for f in report.findings if f.status is Status.FAILED] == ["logits"]


def test_the_ports_after_it_are_not_judged(tiny: Path, run: Run) -> None:
    ports = [f"--port={PORTS}:{name}" for name in ("good", "twice_too_large", "good")]
    status, out, err = run("--checkpoint", tiny, "--length", 5, "--fail-fast", *ports, port=None)
    assert status == 1
    assert f"{PORTS}:good: not judged, {STOPPED}" in err
    assert "3 ports" in out


@pytest.mark.parametrize("fail_fast", [False, True])
def test_weights_alone_stop_nothing(tiny: Path, tmp_path: Path, fail_fast: bool) -> None:
    """Whether a tensor that is not found is a failure, the logits say."""
    (tmp_path / "one.py").write_text(
        GELU.replace("block.mlp.act = torch.nn.GELU()", "block.mlp.c_fc.weight.data[0, 0] *= 2"),
        encoding="utf-8",
    )
    report = judged(tiny, f"{tmp_path / 'one.py'}:factory", fail_fast)
    failed = {f.id for f in report.findings if f.status is Status.FAILED}
    assert {"weights.values", "architecture"} <= failed


def test_what_is_waived_stops_nothing(tiny: Path, tmp_path: Path) -> None:
    source = GELU.replace(
        "    return port",
        "    port.waivers = {'architecture': 'a reason', "
        "'activations': 'another', 'lens': 'a third'}\n    return port",
    )
    (tmp_path / "waived.py").write_text(source, encoding="utf-8")
    report = judged(tiny, f"{tmp_path / 'waived.py'}:factory", fail_fast=True)
    assert report.error is None
    assert {w.law for w in report.waived} >= {"architecture", "activations"}
    assert "logits" in {f.id for f in report.findings if f.status is Status.FAILED}
