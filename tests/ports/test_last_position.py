"""Ports that return the logits of the last position only: said, and judged as far as that goes."""

from __future__ import annotations

import pytest
from models import INPUTS, TESTS, checkpoint, failed_laws, failures, finding, judged

from gpt_verify.findings import Status, Verdict
from gpt_verify.port import LAST_ONLY

PORTS = TESTS / "last_position_ports.py"
SOURCE = checkpoint()
ONE_CALL = ("causality.bits", "cache", "positions.padding")


class TestRight:
    @pytest.mark.parametrize("name", ["one_position", "no_position", "Headed", "Early", "Sited"])
    @pytest.mark.parametrize("inputs", [INPUTS, INPUTS[1:], INPUTS[:0:-1]], ids=["", "2", "back"])
    def test_verified_and_said(self, name: str, inputs: list) -> None:
        report = judged(f"{PORTS}:{name}", SOURCE, inputs)
        assert report.error is None
        assert failures(report) == []
        assert report.verdict is Verdict.VERIFIED
        assert any(LAST_ONLY in remark for remark in report.remarks)
        for law in ONE_CALL:
            found = finding(report, law)
            assert (found.status, found.message) == (Status.NOT_EXAMINED, LAST_ONLY)
        assert finding(report, "logits", "logits").score is not None

    @pytest.mark.parametrize("name", ["all_positions", "wrapped"])
    def test_what_returns_all_is_not_said_to_be_one(self, name: str) -> None:
        report = judged(f"{PORTS}:{name}", SOURCE)
        assert report.verdict is Verdict.VERIFIED
        assert report.remarks == ()
        assert finding(report, "causality.bits").status is Status.PASSED

    def test_the_laws_that_need_no_more_are_held(self) -> None:
        report = judged(f"{PORTS}:no_position", SOURCE)
        for law in ("batch", "positions.limit", "determinism", "determinism.state"):
            assert finding(report, law).status is Status.PASSED, law
        assert finding(report, "logits.faults", "logits").status is Status.PASSED


class TestWrong:
    @pytest.mark.parametrize(
        ("name", "law"),
        [
            ("first_position", "logits"),
            ("one_before", "logits"),
            ("first_row", "logits"),
            ("many_rows", "batch"),
            ("long_ones", "logits"),
            ("ExactGelu", "architecture"),
            ("OtherHead", "architecture"),
            ("SitedWrong", "architecture"),
        ],
    )
    def test_refuted(self, name: str, law: str) -> None:
        report = judged(f"{PORTS}:{name}", SOURCE)
        assert report.verdict is Verdict.REFUTED
        assert law in failed_laws(report)
        assert any(LAST_ONLY in remark for remark in report.remarks)

    def test_the_place_is_named(self) -> None:
        report = judged(f"{PORTS}:ExactGelu", SOURCE)
        assert report.first_divergence == "h.0.mlp.act"
        assert report.explained_by == ("gelu-erf",)
        report = judged(f"{PORTS}:SitedWrong", SOURCE)
        assert report.first_divergence == "ln_f"


class TestTargets:
    """Where ``forward`` takes targets and then returns all logits, everything is examined."""

    @pytest.mark.parametrize(
        "name", ["Targets", "TargetsDefault", "TargetsShifted", "TargetsAlways", "KvCacheTargets"]
    )
    def test_everything_is_examined(self, name: str) -> None:
        report = judged(f"{PORTS}:{name}", SOURCE)
        assert failures(report) == []
        assert report.verdict is Verdict.VERIFIED
        laws = ("causality.bits", "gradient", "loss.value", "loss.ignored", "loss.batch")
        for law in laws:
            site = "embed" if law == "gradient" else None
            assert finding(report, law, site).status is Status.PASSED, law
        said = " ".join(report.remarks)
        assert ("where targets are given" in said) == (name != "TargetsAlways")
        assert ("by itself" in said) == (name == "TargetsShifted")

    def test_what_it_generates_with_is_compared(self) -> None:
        report = judged(f"{PORTS}:TargetsFirst", SOURCE)
        assert report.verdict is Verdict.REFUTED
        assert failed_laws(report) == {"logits"}

    def test_its_loss_is_judged(self) -> None:
        report = judged(f"{PORTS}:TargetsSum", SOURCE)
        assert report.verdict is Verdict.REFUTED
        # Of one row the sum is the mean: who shifts is found out whatever the size of the loss.
        assert failed_laws(report) == {"loss.value", "loss.batch"}
        assert "loss-not-shifted" not in report.explained_by

    def test_a_loss_that_ignores_nothing(self) -> None:
        """A label that is taken for an index from the end is not ignored."""
        report = judged(f"{PORTS}:TargetsGathered", SOURCE)
        assert report.verdict is Verdict.VERIFIED
        assert "ignores neither -1 nor -100" in finding(report, "loss.ignored").message
        assert finding(report, "loss.value").status is Status.PASSED


class TestCaches:
    @pytest.mark.parametrize("name", ["Past", "PastKeyValues", "KvCache", "KvCacheTargets"])
    def test_passed(self, name: str) -> None:
        report = judged(f"{PORTS}:{name}", SOURCE)
        assert failures(report) == []
        assert report.verdict is Verdict.VERIFIED
        assert finding(report, "cache").status is Status.PASSED
        assert "with a cache" in finding(report, "positions.beyond").message

    def test_refuted(self) -> None:
        report = judged(f"{PORTS}:PastWrong", SOURCE)
        assert failed_laws(report) == {"cache"}

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("Placed", "no cache"),
            ("Object", "forward takes kv_cache and returns no cache"),
            ("Otherwise", "how kv_cache is used is not known: AttributeError"),
        ],
    )
    def test_not_examined(self, name: str, says: str) -> None:
        report = judged(f"{PORTS}:{name}", SOURCE)
        assert failures(report) == []
        assert report.verdict is Verdict.VERIFIED
        found = finding(report, "cache")
        assert found.status is Status.NOT_EXAMINED
        assert found.message.startswith(says)
