"""How much was not examined stands beside the verdict, and ``--require`` makes it count."""

from __future__ import annotations

import dataclasses
import json
import shlex
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command import PORTS, ROOT, Run, complaint
from hypothesis import given
from hypothesis import strategies as st
from report_samples import broken, good, report, wrong

import gpt_verify as gv
from gpt_verify.command.arguments import build_parser
from gpt_verify.errors import UsageError
from gpt_verify.findings import Finding, PortReport, Status, Verdict, Waiver
from gpt_verify.judging.options import Options
from gpt_verify.judging.repeat import repeat_command
from gpt_verify.judging.requirements import requirements
from gpt_verify.laws.table import PARTS, expected_checks
from gpt_verify.reference import Config
from gpt_verify.report import html, junit, terminal
from gpt_verify.report import json as json_report
from gpt_verify.text import headline

pytest_plugins = ["pytester"]

CHECKS = len(expected_checks(Config(97, 24, 12, 3, 2)))
#: What a port that shows nothing but logits is judged on, and the search for known faults.
OF_LOGITS = {
    "logits",
    "logits.faults",
    "determinism",
    "determinism.state",
    "causality.bits",
    "lengths",
    "calls",
    "batch",
    "batch.sizes",
    "positions.limit",
    "positions.beyond",
    "history",
    "history.prompts",
}
SEEN = len(OF_LOGITS)
#: What each check that is required by the name ``cache`` says of such a port.
NO_CACHE = (
    "--require cache: 0 of 2 checks examined; "
    "cache: no cache; cache.padded: no attention mask with a cache"
)


def unmet(findings: list[Finding], *texts: str) -> list[str]:
    return [line for need in requirements(texts) if (line := need.unmet(findings)) is not None]


def made(*statuses: Status, id: str = "tying.value") -> list[Finding]:
    return [Finding(id, status, "why") for status in statuses]


class TestWhatIsUnderstood:
    @pytest.mark.parametrize("text", ["all", "90%", "100%", "0.5%", "99.999%", " tying "])
    def test_understood(self, text: str) -> None:
        (found,) = requirements([text])
        assert found.text == text.strip()

    def test_every_law_and_every_part(self) -> None:
        names = {name for p in PARTS for name in (p.id, p.id.partition(".")[0])}
        assert {r.law for r in requirements(names)} == names

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "not all, N%, or a law"),
            ("everything", "not all, N%, or a law"),
            ("tyin", "did you mean tying?"),
            ("activation.local", "did you mean activations.local?"),
            ("ALL", "not all, N%"),
            ("0%", "more than 0%"),
            ("100.1%", "at most 100%"),
            ("-5%", "more than 0%"),
            ("nan%", "more than 0%"),
            ("1e1%", "more than 0%"),
            ("5.%", "more than 0%"),
            ("\N{ARABIC-INDIC DIGIT FIVE}%", "more than 0%"),
            ("%", "more than 0%"),
        ],
    )
    def test_refused(self, text: str, says: str) -> None:
        with pytest.raises(UsageError) as refused:
            requirements([text])
        assert says in str(refused.value)

    @given(st.text(max_size=12), st.sampled_from(["", "%"]))
    def test_any_text_is_understood_or_refused(self, text: str, end: str) -> None:
        try:
            (found,) = requirements([text + end])
        except UsageError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert 0 < found.least <= 1


class TestWhatIsMissing:
    def test_all(self) -> None:
        passed, failed, unseen = Status.PASSED, Status.FAILED, Status.NOT_EXAMINED
        assert unmet(made(passed, failed), "all") == []
        assert unmet(made(passed, unseen), "all") == ["--require all: 1 of 2 checks examined"]
        assert unmet([], "all") == ["--require all: 0 of 0 checks examined"]

    def test_a_law_says_why(self) -> None:
        found = [
            Finding("tying.value", Status.PASSED, "", "logits"),
            Finding("tying.graph", Status.NOT_EXAMINED, "no graph", "logits"),
            Finding("tyingness", Status.NOT_EXAMINED, "another law"),
        ]
        said = "1 of 2 checks examined; tying.graph at logits: no graph"
        assert unmet(found, "tying") == [f"--require tying: {said}"]
        assert unmet(found, "tying.value") == []
        assert unmet(found, "cache") == ["--require cache: 0 of 0 checks examined"]

    @given(st.lists(st.sampled_from(Status), min_size=1), st.integers(1, 100))
    def test_a_part_is_exact(self, statuses: list[Status], percent: int) -> None:
        seen = len(statuses) - statuses.count(Status.NOT_EXAMINED)
        met = Fraction(seen, len(statuses)) >= Fraction(percent, 100)
        assert (unmet(made(*statuses), f"{percent}%") == []) == met


class TestVerdict:
    def test_what_is_missing_leaves_a_good_port_unjudged(self) -> None:
        port = dataclasses.replace(good(), unmet=("--require all: …",))
        assert port.verdict is Verdict.UNJUDGED
        assert report(port).exit_status == 2

    def test_what_is_refuted_stays_so(self) -> None:
        port = dataclasses.replace(wrong(), unmet=("--require all: …",))
        assert port.verdict is Verdict.REFUTED

    def test_every_report_says_what_is_missing(self) -> None:
        line = "--require tying: 0 of 1 check examined; tying.graph: no graph"
        made = report(dataclasses.replace(good(), unmet=(line,)))
        assert f"\n  {line}\n" in terminal.render(made)
        assert line in html.render(made)
        error = ET.fromstring(junit.render(made)).find(".//error")
        assert error is not None and error.get("message") == line
        document = json_report.as_dict(made)
        jsonschema.validate(document, json_report.schema())
        assert document["ports"][0]["unmet"] == [line]


def first_lines(made: gv.Report) -> list[str]:
    """Of the terminal; of the page its title and its heading; of JUnit the name of all suites."""
    page = html.render(made)
    root = ET.fromstring(junit.render(made))
    return [
        terminal.render(made).splitlines()[0],
        page.split("<title>gpt-verify: ")[1].split("</title>")[0],
        root.get("name", "").removeprefix("gpt-verify: "),
    ]


class TestFirstLine:
    @pytest.mark.parametrize(
        ("ports", "says"),
        [
            ((good(),), "verified: 8 checks; 2 not examined"),
            ((good("a"), good("b")), "verified: 2 ports, 16 checks; 4 not examined"),
            ((wrong(),), "refuted: 4 checks failed, 4 passed; 2 not examined"),
            ((broken(),), "unjudged: 0 checks passed; 1 not examined"),
            ((), "unjudged: 0 ports, 0 checks passed; 0 not examined"),
            (
                (dataclasses.replace(good(), waived=(Waiver("tying", "why", 1),)),),
                "verified: 8 checks; 2 not examined, 1 waiver",
            ),
        ],
    )
    def test_is_alike_everywhere(self, ports: tuple[PortReport, ...], says: str) -> None:
        made = report(*ports)
        assert headline(made) == says
        assert set(first_lines(made)) == {says}
        assert f"{says.partition(': ')[2]}.</h1>" in html.render(made)
        counts = json_report.as_dict(made)["counts"]
        assert counts == {
            status.value: sum(f.status is status for p in ports for f in p.findings)
            for status in Status
        }


class TestCommand:
    def test_a_port_that_shows_logits_alone(self, run: Run) -> None:
        status, out, _ = run()
        assert status == 0
        assert out.splitlines()[0] == f"verified: {SEEN} checks; {CHECKS + 1 - SEEN} not examined"

    def test_what_it_does_not_show_is_required(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        status, out, err = run("--require", "activations", "--require", "2%", "--json", path)
        assert (status, err) == (2, "")
        assert out.splitlines()[0].startswith(f"unjudged: {SEEN} checks passed; ")
        assert "  --require activations: 0 of " in out
        assert "the port shows nothing but logits" in out
        (port,) = json.loads(path.read_text())["ports"]
        assert (port["verdict"], port["error"]) == ("unjudged", None)
        (line,) = port["unmet"]
        assert line.startswith("--require activations: 0 of ")
        passed = [check["id"] for check in port["checks"] if check["status"] == "passed"]
        assert sorted(passed) == sorted(OF_LOGITS)
        assert port["counts"]["passed"] == SEEN

    def test_what_it_shows_is_required(self, run: Run) -> None:
        assert run("--require", "logits", "--require", "batch", "--require", "2%")[0] == 0
        assert run("--require", "all")[0] == 2
        assert run("--require", "all", port="twice_too_large")[0] == 1

    def test_a_slip_is_said_before_anything_runs(self, run: Run) -> None:
        status, out, err = run("--require", "activatons")
        assert (status, out) == (2, "")
        assert "did you mean activations?" in complaint(err)

    def test_it_is_in_the_command_that_repeats(self) -> None:
        words = repeat_command(None, [], Options(require=("all", "90%")))
        args = build_parser().parse_args(shlex.split(words)[1:])
        assert args.require == ["all", "90%"]

    def test_from_python(self, tiny: Path) -> None:
        made: Any = gv.run(f"{PORTS}:good", tiny, lengths=[5], require=["cache"])
        assert made.exit_status == 2
        assert made.ports[0].unmet == (NO_CACHE,)


def test_in_pytest(pytester: pytest.Pytester, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def user(require: str) -> pytest.RunResult:
        more = (f"--checkpoint={tiny}", "--gpt-verify-length=5", f"--port={PORTS}:good")
        return pytester.runpytest_subprocess("-p", "gpt_verify.plugin", *more, "--require", require)

    result = user("2%")
    assert result.ret == 0
    assert f"verified: {SEEN} checks; {CHECKS + 1 - SEEN} not examined" in result.stdout.str()
    result = user("cache")
    assert result.ret == 1
    assert result.parseoutcomes()["failed"] == 1
    assert NO_CACHE in result.stdout.str()
    result = user("chache")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "did you mean cache?" in result.stdout.str()
