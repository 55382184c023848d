"""Nothing is verified without an end-to-end comparison with the reference: of the logits that are
returned, whatever is shown beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_ports import _correct
from command import Run
from models import checkpoint, failed_laws, failures, finding, judged

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.errors import PortError
from gpt_verify.findings import Finding, Status, Verdict, unanchored, verdict
from gpt_verify.port import Floats, Port, Tokens, Visit
from gpt_verify.ports.huggingface import huggingface

HERE = Path(__file__)
SOURCE = checkpoint()


class Shown(Port):
    """Correct, and shows nothing."""

    name = "shown"
    scale = 1.0

    def __init__(self, source: Checkpoint) -> None:
        self.source = source

    def logits(self, tokens: Tokens) -> Floats:
        return self.right(tokens) * np.float32(self.scale)

    def right(self, tokens: Tokens) -> Floats:
        return _correct(self.source, tokens)

    def embedded(self, tokens: Tokens) -> Floats:
        w = self.source.tensors
        return w["wte"][tokens] + w["wpe"][: tokens.shape[1]]

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        return self.logits(tokens)


class NoSites(Shown):
    """Another model."""

    scale = 1.02


class OneSite(NoSites):
    """Another model; the site that it shows is right."""

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        visit("embed", self.embedded(tokens))
        return self.logits(tokens)


class ShowsOthers(NoSites):
    """Another model, that shows the logits of the correct one."""

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        visit("logits", self.right(tokens))
        return self.logits(tokens)


class ReturnsOthers(NoSites):
    """Another model, whose watched run alone is right."""

    waivers = {"determinism": "it is said to be the engine"}  # noqa: RUF012

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        return self.right(tokens)


class OfOneInput(NoSites):
    """Shows correct logits on its first call alone."""

    calls = 0

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        self.calls += 1
        if self.calls == 1:
            visit("logits", self.right(tokens))
            return self.right(tokens)
        return self.logits(tokens)


class WrongShape(Shown):
    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        return self.right(tokens)[..., :-1]


class ReturnsNothing(Shown):
    def activations(self, tokens: Tokens, visit: Visit) -> None:  # type: ignore[override]
        visit("logits", self.right(tokens))


class WaivesThem(NoSites):
    waivers = {"logits": "we know"}  # noqa: RUF012


class WaivesThemShown(OneSite):
    waivers = {"logits": "we know"}  # noqa: RUF012


class WaivesMore(NoSites):
    """With what it is, too."""

    waivers = {"logits": "we know", "weights": "not shown"}  # noqa: RUF012


@pytest.mark.parametrize(
    "port", ["NoSites", "OneSite", "ShowsOthers", "ReturnsOthers", "OfOneInput", "WrongShape"]
)
def test_another_model_is_refuted_whatever_it_shows(port: str) -> None:
    report = judged(f"{HERE}:{port}", SOURCE)
    assert report.error is None
    assert report.verdict is Verdict.REFUTED
    assert finding(report, "logits", "logits").status is Status.FAILED
    assert report.first_divergence == "logits"


def test_a_right_one_is_verified_by_what_it_returns() -> None:
    report = judged(f"{HERE}:Shown", SOURCE)
    assert report.verdict is Verdict.VERIFIED
    assert failures(report) == []
    assert report.logits_floors is not None


def test_a_known_fault_is_named_in_logits_beside_which_no_site_is_shown() -> None:
    report = judged(f"{HERE}:exact_gelu", SOURCE)
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == ("gelu-erf",)


def exact_gelu(source: Checkpoint) -> Port:
    from torch import nn

    port = huggingface(source, "eager")
    for block in port.module.transformer.h:
        block.mlp.act = nn.GELU()

    class Bare(Shown):
        def logits(self, tokens: Tokens) -> Floats:
            return port.logits(tokens)

    return Bare(source)


def test_logits_that_are_not_returned_are_said_to_be_missing() -> None:
    report = judged(f"{HERE}:ReturnsNothing", SOURCE)
    assert report.verdict is Verdict.UNJUDGED
    assert isinstance(report.exception, PortError)
    assert "returned NoneType, not an array of numbers" in str(report.error)


@pytest.mark.parametrize("port", ["WaivesThem", "WaivesThemShown", "WaivesMore"])
def test_waived_logits_leave_nothing_judged(run: Run, port: str) -> None:
    status, out, err = run("--port", f"{HERE}:{port}", port=None)
    assert status == 2
    assert "nothing is verified without its logits: waived (we know): logits[" in err
    assert out.splitlines()[-1].startswith("unjudged: 1 port, ")


def test_shown_logits_that_are_returned_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comparison is for what the first has not seen; a correct module pays nothing."""
    from gpt_verify.laws.logits.check import LogitsComparison

    compared: Counter[tuple[LogitsComparison, int, int]] = Counter()
    add_row = LogitsComparison.add_row

    def counted(self: LogitsComparison, row: int, *args: Any) -> Iterator[Any]:
        compared[self, self._input, row] += 1
        return add_row(self, row, *args)

    monkeypatch.setattr(LogitsComparison, "add_row", counted)
    for dtype in ("float32", "bfloat16"):
        compared.clear()
        report = judged("huggingface-eager", SOURCE, dtype=dtype)
        assert report.verdict is Verdict.VERIFIED, failed_laws(report)
        assert set(compared.values()) == {1}


PASSED = Finding("batch", Status.PASSED, "same bits")


@pytest.mark.parametrize(
    ("findings", "expected", "why"),
    [
        ([], Verdict.UNJUDGED, None),
        ([PASSED], Verdict.UNJUDGED, "no logits were compared"),
        ([PASSED, Finding("graph.meta", Status.PASSED, "")], Verdict.UNJUDGED, "no logits were"),
        ([PASSED, Finding("logits", Status.NOT_EXAMINED, "gone")], Verdict.UNJUDGED, ": gone"),
        ([PASSED, Finding("logits", Status.PASSED, "")], Verdict.VERIFIED, None),
        ([PASSED, Finding("logits.faults", Status.PASSED, "")], Verdict.UNJUDGED, "no logits"),
        ([PASSED, Finding("tying", Status.FAILED, "")], Verdict.REFUTED, None),
    ],
)
def test_the_verdict(findings: list[Finding], expected: Verdict, why: str | None) -> None:
    assert verdict(findings) is expected
    said = unanchored(findings)
    assert (said is None) if why is None else why in str(said)
