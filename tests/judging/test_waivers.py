"""Waivers, end to end: what they excuse is said and counted, and one that excuses nothing is an
error."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from command import Run
from waiving_ports import INFERENCE

from gpt_verify.command.cli import main
from gpt_verify.findings import Finding, Status, Waiver
from gpt_verify.judging.waivers import waive
from gpt_verify.report import json as json_report

PORTS = Path(__file__).parents[1] / "waiving_ports.py"


def judged(tiny: Path, tmp_path: Path, port: str) -> tuple[int, dict]:
    """Exit status and the JSON report of one port."""
    out = tmp_path / "report.json"
    words = ["--checkpoint", str(tiny), "--length", "5", "--json", str(out)]
    status = main(["run", *words, "--port", f"{PORTS}:{port}"])
    document = json.loads(out.read_text())
    jsonschema.validate(document, json_report.schema())
    return status, document["ports"][0]


def checks(port: dict, law: str) -> list[dict]:
    return [check for check in port["checks"] if check["id"] == law]


class TestWaive:
    FAILED = Finding("tying.storage", Status.FAILED, "a copy", "logits")
    PASSED = Finding("tying.value", Status.PASSED, "equal", "logits")
    UNSEEN = Finding("tying.gradient", Status.NOT_EXAMINED, "no gradients", "logits")

    def test_a_failure_is_not_examined(self) -> None:
        found, waived, unused = waive([self.FAILED, self.PASSED], {"tying.storage": "why"})
        assert found[0].status is Status.NOT_EXAMINED
        assert found[0].message == "waived (why): a copy"
        assert found[1] == self.PASSED
        assert waived == (Waiver("tying.storage", "why", 1),)
        assert unused is None

    def test_a_law_stands_for_its_parts(self) -> None:
        two = [self.FAILED, Finding("tying.graph", Status.FAILED, "two variables", "logits")]
        found, waived, unused = waive([*two, self.PASSED], {"tying": "why"})
        assert [f.status for f in found] == [Status.NOT_EXAMINED] * 2 + [Status.PASSED]
        assert waived == (Waiver("tying", "why", 2),)
        assert unused is None

    def test_not_for_a_law_whose_name_begins_alike(self) -> None:
        alike = Finding("tyingness", Status.FAILED, "wrong")
        found, _, unused = waive([alike, self.PASSED], {"tying": "why"})
        assert found[0] == alike
        assert unused == "the waiver of tying excuses nothing: the law holds"

    def test_what_cannot_be_examined_may_be_waived(self) -> None:
        found, waived, unused = waive([self.UNSEEN], {"tying.gradient": "why"})
        assert found == [self.UNSEEN]
        assert waived == (Waiver("tying.gradient", "why", 0),)
        assert unused is None

    def test_a_law_that_does_not_exist(self) -> None:
        _, _, unused = waive([self.FAILED], {"tieing": "why"})
        assert unused == ("the waiver of tieing excuses nothing: no such law; did you mean tying?")


class TestEndToEnd:
    def test_unwaived_is_refuted_on_tying_and_not_on_its_numbers(
        self, tiny: Path, tmp_path: Path
    ) -> None:
        status, port = judged(tiny, tmp_path, "unwaived")
        assert status == 1
        assert port["waivers"] == []
        failures = [check["id"] for check in port["checks"] if check["status"] == "failed"]
        assert failures == ["tying.storage"]
        (count,) = checks(port, "weights.count")
        assert "lm_head, a second wte equal bit for bit, is not counted" in count["message"]

    def test_on_the_factory(self, tiny: Path, tmp_path: Path) -> None:
        status, port = judged(tiny, tmp_path, "on_the_factory")
        assert status == 0
        assert port["verdict"] == "verified"
        assert port["waivers"] == [
            {"law": "tying.storage", "reason": INFERENCE, "failures": 1},
            {"law": "tying.gradient", "reason": INFERENCE, "failures": 0},
        ]
        (storage,) = checks(port, "tying.storage")
        assert storage["status"] == "not_examined"
        assert storage["message"].startswith(
            f"waived ({INFERENCE}): lm_head is a matrix of its own"
        )
        assert checks(port, "tying.value")[0]["status"] == "passed"
        assert port["first_divergence"] is None

    def test_on_the_port(self, tiny: Path, tmp_path: Path) -> None:
        status, port = judged(tiny, tmp_path, "on_the_port")
        assert status == 0
        assert port["waivers"] == [{"law": "tying", "reason": INFERENCE, "failures": 1}]

    @pytest.mark.parametrize(
        ("port", "complaint"),
        [
            ("excuses_nothing", "the waiver of tying.value excuses nothing: the law holds"),
            ("no_such_law", "the waiver of tieing.storage excuses nothing: no such law"),
        ],
    )
    def test_one_that_excuses_nothing_is_an_error(
        self, tiny: Path, tmp_path: Path, port: str, complaint: str
    ) -> None:
        status, judgement = judged(tiny, tmp_path, port)
        assert status == 2
        assert judgement["verdict"] == "unjudged"
        assert complaint in judgement["error"]

    def test_other_failures_still_refute(self, tiny: Path, tmp_path: Path) -> None:
        status, port = judged(tiny, tmp_path, "of_another_law")
        assert status == 1
        assert port["first_divergence"] == "logits"
        assert checks(port, "logits")[0]["status"] == "failed"
        assert checks(port, "tying.storage")[0]["status"] == "not_examined"

    @pytest.mark.parametrize(
        ("port", "law", "expected"),
        # A function's logits are all that there is to compare with the reference.
        [("a_function", "logits", 2), ("a_module", "tying", 0)],
    )
    def test_on_the_factory_of_a_function_or_a_module(
        self, tiny: Path, tmp_path: Path, port: str, law: str, expected: int
    ) -> None:
        status, judgement = judged(tiny, tmp_path, port)
        assert status == expected, judgement
        (waiver,) = judgement["waivers"]
        assert waiver["law"] == law
        assert waiver["failures"] >= 1


class TestTheTerminal:
    def test_printed_and_counted(self, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
        status, out, _ = run("--port", f"{PORTS}:on_the_factory", port=None)
        assert status == 0
        lines = out.splitlines()
        at = next(i for i, line in enumerate(lines) if "tying.storage is waived" in line)
        assert lines[at].endswith("tying.storage is waived, 1 failure")
        assert lines[at + 1] == f"  {INFERENCE}"
        assert lines[-1].startswith("verified: 1 port, ")
        assert lines[-1].endswith(", 2 waivers")

    def test_the_error_is_said(self, run: Run) -> None:
        status, out, _ = run("--port", f"{PORTS}:excuses_nothing", port=None)
        assert status == 2
        assert "the waiver of tying.value excuses nothing: the law holds" in out
        assert out.splitlines()[-1].startswith("unjudged: ")
