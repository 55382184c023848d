"""What there is no room for is not examined, by name; nothing else changes."""

from __future__ import annotations

import functional_styles
import pytest
from models import INPUTS, checkpoint, failures
from subjects import port

from gpt_verify.findings import Status, Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.law import a_whole_context, derivatives
from gpt_verify.laws.table import CHECKS
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.process import memory
from gpt_verify.reference import Config

#: OpenAI's largest.
LARGEST = Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48)


def test_what_has_no_room_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    source = checkpoint()
    report = judge("port", source, INPUTS, None, "cpu", Silent(), build=lambda: port(source=source))
    assert report.error is None and failures(report) == []
    refused = {law.id for law in CHECKS if law.takes(source.config)} | {"tying.persistence"}
    assert refused >= {"cache", "causality.bits", "gradient", "symmetry.gradient"}
    for finding in report.findings:
        if finding.id in refused:
            assert finding.status is Status.NOT_EXAMINED, finding
            assert "are free" in finding.message, finding
    assert report.verdict is Verdict.VERIFIED  # its weights, its sites and its logits


def test_a_float64_copy_of_the_whole_is_not_made_without_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A module that reads another one's parameters can only be widened as a whole."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    source = checkpoint()
    made = TorchModule(functional_styles.functional(source), source, "functional")
    report = judge("port", source, INPUTS, None, "cpu", Silent(), build=lambda: made, laws=())
    architecture = [f for f in report.findings if f.id == "architecture"]
    assert {f.status for f in architecture} == {Status.NOT_EXAMINED}
    assert {f.message for f in architecture} == {"needs 0.1 GB, 0 are free"}
    assert failures(report) == []


def test_the_largest_model_leaves_room_on_a_machine_that_holds_it_four_times() -> None:
    """Estimates are no reason to leave a law out where it was seen to run: 24 GB."""
    port_bytes = 4 * 1_557_611_200
    for law in CHECKS:
        assert law.takes(LARGEST) < 0.6 * port_bytes, law.id
    assert a_whole_context(LARGEST) > 4 * 1024 * 50257
    assert derivatives(LARGEST) > 8 * 50257 * 1600
