"""The course of each port through several reports, in the order of their dates.

Two neighbours are compared as ``gpt-verify compare`` compares two reports, and what it counts as
worse is worse here. Where two neighbours are of another checkpoint or ran on other inputs, nothing
is said of one by the other: a new *stretch* begins, and what is worse is asked of the last stretch
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from gpt_verify.errors import UsageError
from gpt_verify.findings import Finding, PortReport, Report, Status
from gpt_verify.report.compare.comparison import (
    Pair,
    PortComparison,
    by_name,
    laws_of,
    numbered,
    require_comparable,
)
from gpt_verify.report.compare.stored import read_report
from gpt_verify.report.compare.versions import versions
from gpt_verify.text import count, one_line, ratio

#: A check, its site, and how many of the same came before.
Key = tuple[str, str | None, int]


@dataclass(frozen=True)
class Entry:
    """One report of a history.

    Attributes:
        name: of its file, as far as that tells it from the others.
        report: what stands in it.
        changed: what it ran with that the report before it did not: name → (before, now).
        apart: why it cannot be compared with the report before it; None where it can.
    """

    name: str
    report: Report
    changed: dict[str, tuple[str, str]]
    apart: str | None = None

    @property
    def date(self) -> str:
        """When it was made, to the minute; empty of a report that does not say."""
        found = date_of(self.report)
        return "" if found is None else f"{found:%Y-%m-%d %H:%M}"

    @property
    def changes(self) -> str:
        """``torch 2.8 → 2.9, numpy 2.3 → 2.4``."""
        return ", ".join(f"{name} {a} → {b}" for name, (a, b) in self.changed.items())


@dataclass(frozen=True)
class Step:
    """One port in one report, beside the report before it that has the port.

    Attributes:
        at: the place of the report in the history.
        port: what was found there.
        before: the comparison with what came before; None where there is nothing to compare with.
    """

    at: int
    port: PortReport
    before: PortComparison | None = None

    @property
    def largest(self) -> tuple[float, Pair] | None:
        """The largest ratio of a score that moved to what it was; one that is no number counts as
        largest. 1 where none moved."""
        if self.before is None:
            return None
        rated = [(r, pair) for pair in self.before.pairs if (r := pair.ratio) is not None]
        rated = [item for item in rated if item[0] != 1] or rated
        return max(rated, key=lambda x: math.inf if math.isnan(x[0]) else x[0], default=None)

    def number_of(self, status: Status) -> int:
        return sum(finding.status is status for finding in self.port.findings)


@dataclass(frozen=True)
class Fall:
    """What passed once and does not pass in the newest report, since one of the reports.

    Attributes:
        at: the place of the first report in which it does not pass.
        fell: whether the verdict fell there.
        checks: as that report has them, in its order; as the last one that has them where it does
            not.
    """

    at: int
    fell: bool
    checks: tuple[Finding, ...]

    @property
    def what(self) -> str:
        """``1 verdict and 4 checks``."""
        parts = ["1 verdict"] * self.fell
        parts += [count(len(self.checks), "check")] * bool(self.checks)
        return " and ".join(parts)


@dataclass(frozen=True)
class Course:
    """One port through all reports.

    Attributes:
        name: of the port.
        steps: one for each report that has the port, the oldest first.
        falls: what is worse in the newest report, what became so first before what became so later.
    """

    name: str
    steps: tuple[Step, ...]
    falls: tuple[Fall, ...]

    @cached_property
    def scores(self) -> dict[str, list[Finding | None]]:
        """Of each check that has scores, the finding with the largest score ÷ limit at each
        step."""
        found: dict[str, list[Finding | None]] = {}
        for n, step in enumerate(self.steps):
            for finding in step.port.findings:
                value = ratio(finding)
                if value is None:
                    continue
                row = found.setdefault(finding.id, [None] * len(self.steps))
                known = row[n]
                if known is None or value > (ratio(known) or 0):
                    row[n] = finding
        return found


@dataclass(frozen=True)
class History:
    """Several reports in the order in which they were made.

    Attributes:
        entries: the reports.
        dated: whether their dates order them; otherwise they stand as they were given.
    """

    entries: tuple[Entry, ...]
    dated: bool

    @classmethod
    def read(cls, paths: Sequence[Path]) -> History:
        """Raises UsageError for what is no report, and for fewer than two."""
        short = [path.stem for path in paths]
        names = short if len(set(short)) == len(short) else list(map(str, paths))
        reports = [(name, read_report(path)) for name, path in zip(names, paths, strict=True)]
        return cls.of(reports)

    @classmethod
    def of(cls, reports: Sequence[tuple[str, Report]]) -> History:
        """A history of named reports.

        Raises:
            UsageError: there are fewer than two.
        """
        if len(reports) < 2:
            raise UsageError(f"a history takes two reports or more; {len(reports)} was given")
        dates = [date for _, report in reports if (date := date_of(report)) is not None]
        dated = len(dates) == len(reports)
        if dated:
            reports = [reports[n] for n in sorted(range(len(dates)), key=dates.__getitem__)]
        entries = [Entry(one_line(reports[0][0]), reports[0][1], {})]
        for (old, before), (new, after) in pairwise(reports):
            changed, _ = versions(before.environment, after.environment)
            apart = None
            try:
                require_comparable(before, after.checkpoint, after.inputs, (old, new))
            except UsageError as error:
                apart = one_line(error)
            entries.append(Entry(one_line(new), after, changed, apart))
        return cls(tuple(entries), dated)

    @cached_property
    def start(self) -> int:
        """The place at which the last stretch begins."""
        return max((n for n, entry in enumerate(self.entries) if entry.apart), default=0)

    @cached_property
    def courses(self) -> tuple[Course, ...]:
        """One for each port that occurs, in the order of the newest report."""
        ports = [by_name(entry.report.ports) for entry in self.entries]
        names = dict.fromkeys(key for found in reversed(ports) for key in found)
        return tuple(self._course(key, [found.get(key) for found in ports]) for key in names)

    def _course(self, key: tuple[str, int], ports: Sequence[PortReport | None]) -> Course:
        steps: list[Step] = []
        for n, port in enumerate(ports):
            if port is None:
                continue
            before = None
            if steps and not any(e.apart for e in self.entries[steps[-1].at + 1 : n + 1]):
                old = steps[-1]
                laws = laws_of(self.entries[old.at].report)
                before = PortComparison(old.port, port, laws)
            steps.append(Step(n, port, before))
        return Course(one_line(key[0]), tuple(steps), tuple(self._falls(ports)))

    def _falls(self, ports: Sequence[PortReport | None]) -> list[Fall]:
        """What passed in the last stretch and does not pass at its end, by when that began."""
        last = len(ports) - 1
        found = {n: numbered(p.findings) for n, p in enumerate(ports) if p and n >= self.start}
        since: dict[int, list[Finding]] = {}
        for key in dict.fromkeys(key for n in reversed(found) for key in found[n]):
            passed = [n for n, checks in found.items() if _passes(checks.get(key))]
            if not passed or passed[-1] == last:
                continue
            then = passed[-1]
            pair = Pair(found[then][key], found.get(last, {}).get(key), self._owed(then, key))
            if pair.worse:
                # The next report that has the port; where none has it any more, the next one.
                at = next((n for n in found if n > then), then + 1)
                since.setdefault(at, []).append(found.get(at, {}).get(key) or found[then][key])
        fell = self._verdict_fell(ports)
        places = sorted({*since, *([fell] if fell is not None else [])})
        return [Fall(n, n == fell, tuple(since.get(n, ()))) for n in places]

    def _owed(self, at: int, key: Key) -> bool:
        laws = laws_of(self.entries[at].report)
        return laws is None or key[0] in laws

    def _verdict_fell(self, ports: Sequence[PortReport | None]) -> int | None:
        """Where the verdict fell below the best of the last stretch for good; None where it has
        not, or the port is gone."""
        known = [(n, port) for n, port in enumerate(ports) if port and n >= self.start]
        if not known or known[-1][0] != len(ports) - 1:
            return None
        newest = known[-1][1]
        above = [n for n, port in known if PortComparison(port, newest).fell]
        return None if not above else min(n for n, _ in known if n > above[-1])

    @property
    def alone(self) -> bool:
        """Whether the newest report can be compared with none before it."""
        return self.start == len(self.entries) - 1

    @property
    def worse_checks(self) -> int:
        return sum(len(fall.checks) for course in self.courses for fall in course.falls)

    @property
    def worse_verdicts(self) -> int:
        return sum(fall.fell for course in self.courses for fall in course.falls)

    @property
    def exit_status(self) -> int:
        """0 where the newest report passes all that passed before it, 1 where it does not, 2 where
        it can be compared with none."""
        if self.alone:
            return 2
        return int(self.worse_checks + self.worse_verdicts > 0)

    @property
    def headline(self) -> str:
        reports, ports = count(len(self.entries), "report"), count(len(self.courses), "port")
        dates = f", {self.entries[0].date} to {self.entries[-1].date}" if self.dated else ""
        if self.alone:
            said = "the newest report cannot be compared with the one before it"
        elif not self.exit_status:
            said = "nothing is worse in the newest report"
        else:
            numbers = (self.worse_verdicts, "verdict"), (self.worse_checks, "check")
            parts = [count(n, noun) for n, noun in numbers if n]
            said = f"worse in the newest report: {' and '.join(parts)}"
        return f"{reports}, {ports}{dates}: {said}"


def date_of(report: Report) -> datetime | None:
    """When a report was made; None where it does not say, or says what is no date with a zone."""
    said = report.environment.get("date")
    try:
        found = datetime.fromisoformat(said) if isinstance(said, str) else None
        return None if found is None or found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _passes(finding: Finding | None) -> bool:
    return finding is not None and finding.status is Status.PASSED
