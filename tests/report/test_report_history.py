"""``gpt-verify report --history``: what moved from report to report, and since when it is worse."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from command import complaint
from hypothesis import given
from hypothesis import strategies as st
from report_samples import broken, good, report, wrong

from gpt_verify.command.cli import main
from gpt_verify.errors import UsageError
from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict
from gpt_verify.judging.run import environment
from gpt_verify.report import json as json_report
from gpt_verify.report.compare.comparison import compare_reports
from gpt_verify.report.history.course import History, date_of
from gpt_verify.report.history.html import render as html
from gpt_verify.report.history.terminal import render as terminal


def made(*ports: PortReport, day: int | None = 1, torch: str = "2.4", **more: Any) -> Report:
    found: dict[str, Any] = {"versions": {"torch": torch, "numpy": "2.4"}, "platform": "Linux"}
    if day is not None:
        found["date"] = f"2026-03-{day:02}T10:00:00.000+00:00"
    return dataclasses.replace(report(*ports), environment=found, **more)


def scored(port: PortReport, factor: float) -> PortReport:
    """The same port with every score times this factor, within its limit."""
    scores = [dataclasses.replace(f, score=f.score and f.score * factor) for f in port.findings]
    return dataclasses.replace(port, findings=tuple(scores))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four reports, the newest first: a score grows, torch breaks the port, the port is as it
    was, another one is there."""
    reports = {
        "d": made(wrong("port"), good("other"), day=9, torch="2.9"),
        "c": made(wrong("port"), day=7, torch="2.9"),
        "b": made(scored(good("port"), 1.5), day=4),
        "a": made(good("port"), day=2),
    }
    for name, one in reports.items():
        (tmp_path / f"{name}.json").write_text(json_report.render(one))
    return [tmp_path / f"{name}.json" for name in reports]


OTHER = {"seed": 1, "shapes": {"length 5": [1, 5]}, "tokens_in_all": 5}


class TestCommand:
    def test_the_table_of_a_port(self, files: list[Path], capsys: Any) -> None:
        assert main(["report", "--history", *map(str, files)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "oldest first, by date"
        start = lines.index("port port")
        assert lines[start + 1].strip() == (
            "worse since c (2026-03-07 10:00; torch 2.4 → 2.9): 1 verdict and 4 checks"
        )
        assert lines[start + 2].strip() == "- activations.local at h.0…1.mlp.act"
        rows = [line.split() for line in lines[start + 7 : start + 11]]
        assert [row[0] for row in rows] == ["a", "b", "c", "d"]
        known = {verdict.value for verdict in Verdict}
        verdicts = [next(word for word in row if word in known) for row in rows]
        assert verdicts == ["verified", "verified", "refuted", "refuted"]
        assert " 1.5 × activations.local[h.0.attn.qkv] " in lines[start + 8]
        assert rows[2][3:7] == ["torch", "2.4", "→", "2.9"]
        assert lines[-1] == (
            "4 reports, 2 ports, 2026-03-02 10:00 to 2026-03-09 10:00: "
            "worse in the newest report: 1 verdict and 4 checks"
        )

    def test_quiet_is_the_last_line(self, files: list[Path], capsys: Any) -> None:
        assert main(["report", "--history", "--quiet", str(files[3]), str(files[2])]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith(": nothing is worse in the newest report")

    def test_refusals(self, files: list[Path], capfd: Any) -> None:
        assert main(["report", "--history", str(files[0])]) == 2
        assert "two reports or more; 1 was given" in complaint(capfd.readouterr().err)
        files[1].write_text("{}")
        assert main(["report", "--history", *map(str, files)]) == 2
        assert str(files[1]) in complaint(capfd.readouterr().err)

    def test_the_page(self, files: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "out.html"
        assert main(["report", "--history", *map(str, files), "--html", str(out), "--quiet"]) == 1
        page = out.read_text(encoding="utf-8")
        assert "worse since c (2026-03-07 10:00; torch 2.4 → 2.9): 1 verdict and 4 checks" in page
        assert page.count('<svg class="course"') == 2 * 4  # a line for each check that has scores
        assert page.count('<th scope="row"><code>activations.local</code>') == 2


class TestOrder:
    def test_by_date_whatever_the_order_of_the_files(self) -> None:
        reports = [(str(day), made(good(), day=day)) for day in range(1, 9)]
        random.Random(0).shuffle(reports)
        assert [e.name for e in History.of(reports).entries] == [str(n) for n in range(1, 9)]

    @pytest.mark.parametrize("date", [None, 3, "", "yesterday", "2026-03-01T10:00:00", "9" * 99])
    def test_as_given_where_a_date_is_missing_or_none(self, date: Any) -> None:
        odd = made(good())
        odd.environment["date"] = date
        assert date_of(odd) is None
        history = History.of([("b", made(good(), day=9)), ("a", odd), ("c", made(good(), day=1))])
        assert [entry.name for entry in history.entries] == ["b", "a", "c"]
        assert "not every report has a date" in terminal(history) and not history.dated

    def test_another_zone_is_another_hour(self) -> None:
        early, late = made(good()), made(good())
        early.environment["date"] = "2026-03-01T11:00:00+02:00"
        late.environment["date"] = "2026-03-01T10:00:00Z"
        entries = History.of([("late", late), ("early", early)]).entries
        assert [e.name for e in entries] == ["early", "late"]
        assert entries[0].date == "2026-03-01 09:00"

    def test_a_report_of_this_version_has_a_date(self) -> None:
        now = dataclasses.replace(report(good()), environment=environment())
        assert date_of(now) is not None


class TestRatio:
    @pytest.mark.parametrize(("factor", "said"), [(1, "the same"), (0.5, "0.5 ×"), (3, "3 ×")])
    def test_the_largest_of_those_that_moved(self, factor: float, said: str) -> None:
        """The score of the weights is 0 on both sides, and is not meant."""
        days = [("a", made(good(), day=1)), ("b", made(scored(good(), factor), day=2))]
        lines = terminal(History.of(days)).splitlines()
        assert f" {said} " in next(line for line in lines if line.strip().startswith("b "))


class TestWorse:
    def test_what_recovered_is_not_worse_in_the_end(self) -> None:
        days = [made(good(), day=1), made(wrong("good"), day=2), made(good(), day=3)]
        history = History.of([(str(n), one) for n, one in enumerate(days)])
        assert history.exit_status == 0 and history.courses[0].falls == ()
        (_, down, up) = history.courses[0].steps
        assert down.before is not None and len(down.before.worse) == 4 and down.before.fell
        assert up.before is not None and up.before.worse == ()

    def test_a_port_that_is_gone_is_worse_since_then(self) -> None:
        days = [made(good("a"), good("b"), day=1), made(good("a"), day=2), made(good("a"), day=3)]
        history = History.of([(str(n), one) for n, one in enumerate(days)])
        assert history.exit_status == 1
        (fall,) = next(c for c in history.courses if c.name == "b").falls
        assert fall.at == 1 and not fall.fell and len(fall.checks) == 8

    def test_a_port_that_was_away_for_a_while(self) -> None:
        days = [made(good("a"), day=1), made(good("b"), day=2), made(good("a"), good("b"), day=3)]
        history = History.of([(str(n), one) for n, one in enumerate(days)])
        assert history.exit_status == 0
        assert [len(course.steps) for course in history.courses] == [2, 2]

    def test_a_port_that_breaks(self) -> None:
        days = [made(good("my.py:port"), day=1), made(broken(), day=2)]
        (course,) = History.of([(str(n), one) for n, one in enumerate(days)]).courses
        (fall,) = course.falls
        assert fall.fell and len(fall.checks) == 8

    def test_after_other_inputs_a_stretch_begins(self) -> None:
        days = [
            made(good(), day=1),
            made(wrong("good"), day=2, inputs=OTHER),
            made(wrong("good"), day=3, inputs=OTHER),
        ]
        history = History.of([(str(n), one) for n, one in enumerate(days)])
        assert history.start == 1 and history.exit_status == 0
        assert [step.before is None for step in history.courses[0].steps] == [True, True, False]
        assert "not compared: 0 and 1 ran on different inputs (seed)" in terminal(history)
        assert "Not compared: " in html(history)
        assert html(history).count("<polyline") == 4  # from the second report to the third

    def test_where_the_newest_stands_alone_nothing_is_said_of_it(self) -> None:
        days = [("a", made(good(), day=1)), ("b", made(good(), day=2, inputs=OTHER))]
        history = History.of(days)
        assert history.exit_status == 2
        assert "cannot be compared with the one before it" in history.headline

    @given(
        st.lists(
            st.lists(st.sampled_from([*Status, None]), min_size=3, max_size=3),
            min_size=2,
            max_size=6,
        )
    )
    def test_what_is_worse_is_worse_than_in_some_report_before(
        self, table: list[list[Status | None]]
    ) -> None:
        """As ``compare`` says it, of each earlier report and the newest."""
        reports = []
        for day, row in enumerate(table, 1):
            found = [Finding("logits", Status.PASSED, "within", "logits", 1.0, 2.0)]
            found += [Finding(f"law.{n}", s, "said") for n, s in enumerate(row) if s is not None]
            port = PortReport("port", "float32", "cpu", "checkpoint", tuple(found))
            reports.append(made(port, day=day))
        *older, newest = reports
        compared = [compare_reports(one, newest) for one in older]
        expected = {p.finding.id for c in compared for p in c.ports[0].worse}
        history = History.of([(str(n), one) for n, one in enumerate(reports)])
        (course,) = history.courses
        assert {f.id for fall in course.falls for f in fall.checks} == expected
        assert any(f.fell for f in course.falls) == any(c.worse_verdicts for c in compared)
        for fall in course.falls:
            ids = {f.id for f in fall.checks}
            passes = [
                {f.id for f in one.ports[0].findings if f.status is Status.PASSED}
                for one in reports
            ]
            assert ids <= passes[fall.at - 1] and not any(ids & seen for seen in passes[fall.at :])


def test_what_a_port_says_is_text() -> None:
    nasty = dataclasses.replace(wrong("<script>alert(1)</script>[red]"), error="[bold]\n<b>no")
    found = [dataclasses.replace(f, message="<b>\x1b[1m") for f in nasty.findings]
    before = dataclasses.replace(good(nasty.name))
    after = dataclasses.replace(nasty, findings=tuple(found))
    history = History.of([("<i>", made(before, day=1)), ("b", made(after, day=2))])
    page, text = html(history), terminal(history)
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page
    assert "\x1b" not in page + text and "<script>alert(1)</script>[red]" in text


def test_one_report_is_no_history() -> None:
    with pytest.raises(UsageError, match="two reports or more"):
        History.of([("a", made(good()))])
