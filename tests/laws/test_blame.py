"""What follows from something else is not blamed; a name stands beside what it explains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import CONFIG, INPUTS, checkpoint, failed_laws
from plain_ports import faulty, plain
from subjects import hold
from torch.nn import functional

from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Cause, Finding, PortReport, Status, Verdict
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.judging.judge import judge, standing
from gpt_verify.judging.run import Silent
from gpt_verify.laws.agreement import BEGINNING
from gpt_verify.port import Port

SOURCE = checkpoint()


def judged(port: Port, *laws: str) -> PortReport:
    return judge("port", SOURCE, INPUTS, None, "cpu", Silent(), build=lambda: port, laws=laws)


def rounded(to: torch.dtype) -> Callable[[Any], None]:
    def alter(model: Any) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.to(to).float())

    return alter


@pytest.mark.parametrize("to", [torch.float16, torch.bfloat16])
def test_rounded_weights_are_not_a_narrow_product(to: torch.dtype) -> None:
    report = judged(plain(rounded(to)), "precision")
    assert report.verdict is Verdict.REFUTED
    assert "weights.values" in failed_laws(report)
    assert "precision" not in failed_laws(report)
    assert not any(name.startswith("precision") for name in report.explained_by)


def test_a_narrow_product_beside_a_wrong_tensor_is_found() -> None:
    """What is left says how it was computed."""
    port = faulty("precision-tf32")
    with torch.no_grad():
        port.module.h[0].mlp.c_fc.weight.mul_(1.01)
    assert "precision" in failed_laws(judged(port, "precision"))


def one_scale_for_each_call(model: Any) -> None:
    """Activations in 8 bits: what a row is depends on those beside it."""

    def forward(self: Any, right: Any, x: Any) -> Any:
        scale = x.abs().amax() / 127
        return right((x / scale).round() * scale)

    for block in model.h:
        wrap(block.mlp, "forward", forward)


@pytest.mark.parametrize("law", ["tying.storage", "tying.persistence"])
def test_rows_that_depend_on_each_other_are_no_matter_of_tying(law: str) -> None:
    (finding,) = hold(law, plain(one_scale_for_each_call))
    assert finding.status is Status.PASSED, finding.message
    (batch,) = hold("batch", plain(one_scale_for_each_call))
    assert batch.status is Status.FAILED


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 3e-5, 1.5e-5, 1.1e-5, 1.01e-5, 1e-6, 0.0])
def test_an_epsilon_of_the_last_norm_is_no_matter_of_the_end(eps: float) -> None:
    def alter(model: Any) -> None:
        model.ln_f.eps = eps

    (finding,) = hold("positions.limit", plain(alter))
    assert finding.status is not Status.FAILED, finding.message


@pytest.mark.parametrize("factor", [1.001, 1.01, -1.0])
def test_what_is_wrong_at_the_end_alone_is(factor: float) -> None:
    def alter(model: Any) -> None:
        def embed(self: Any, right: Any, ids: Any, positions: Any) -> Any:
            x = right(ids, positions)
            last = (positions == CONFIG.n_ctx - 1)[..., None]
            return x * torch.where(last, factor, 1.0)

        wrap(model, "embed", embed)

    assert CONFIG.n_ctx > BEGINNING
    (finding,) = hold("positions.limit", plain(alter))
    assert finding.status is Status.FAILED, finding.message
    assert finding.score is not None and finding.score > LIMIT_FLOORS


def failed(check: str, site: str | None = None, *tensors: str) -> Finding:
    return Finding(check, Status.FAILED, "", site, tensors=tensors)


def test_what_is_waived_explains_nothing() -> None:
    waived = Cause("head-copied", laws=("tying.storage", "tying.value"))
    findings = [failed("architecture", "h.0.mlp.act"), failed("tying.value", "logits")]
    (left,) = standing([waived], findings)
    assert left.laws == ("tying.value",)
    assert standing([waived], findings[:1]) == []
    of_site = Cause("gelu-erf", sites=("h.0.mlp.act",), laws=("tying.storage",))
    assert standing([of_site], findings)[0].sites == ("h.0.mlp.act",)


def report(*causes: Cause, first: str | None, findings: tuple[Finding, ...] = ()) -> PortReport:
    return PortReport(
        *("port", "float32", "cpu", "checkpoint", findings),
        first_divergence=first,
        explained_by=tuple(c.fault for c in causes),
        causes=causes,
    )


def test_a_name_stands_beside_what_it_explains() -> None:
    erf = Cause("gelu-erf", sites=("h.3.mlp.act", "h.4.mlp.act"))
    copied = Cause("head-copied", laws=("tying.storage",))
    lost = Cause("weights-zero", tensors=("h0/mlp/c_fc/b",))
    assert report(first=None).explained is None
    assert report(erf, first="h.3.mlp.act").explained == "explained by: gelu-erf"
    assert report(copied, first=None).explained == "explained by: head-copied"
    of_tensor = failed("weights.values", "h.0.mlp.pre", "h0/mlp/c_fc/b")
    whole = report(lost, first="h.0.mlp.pre", findings=(of_tensor,))
    assert whole.explained == "explained by: weights-zero"
    at_the_end = report(copied, first="logits", findings=(failed("tying.storage", "logits"),))
    assert at_the_end.explained == "explained by: head-copied"
    words = "explained in part: at h.3.mlp.act and 1 more by gelu-erf"
    assert report(erf, first="h.0.mlp.act").explained == words
    words += "; at tying.storage by head-copied"
    assert report(erf, copied, first="h.0.mlp.act").explained == words


def test_an_unknown_activation_before_a_known_one() -> None:
    def alter(model: Any) -> None:
        model.h[0].mlp.act = functional.mish
        model.h[2].mlp.act = functional.gelu

    found = judged(plain(alter))
    assert found.first_divergence == "h.0.mlp.act"
    assert found.explained == "explained in part: at h.2.mlp.act by gelu-erf"
