"""Several reports in one table: the same ports on a matrix of versions, as tox or a CI has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_verify.errors import UsageError
from gpt_verify.findings import PortReport, Report, Status, Verdict
from gpt_verify.report.compare.comparison import require_comparable
from gpt_verify.report.compare.stored import read_report
from gpt_verify.report.compare.versions import words_of
from gpt_verify.report.page import assemble
from gpt_verify.text import count, first_failure, label, number, one_line

_STATUS = {Verdict.VERIFIED: 0, Verdict.REFUTED: 1, Verdict.UNJUDGED: 2}
#: Columns before those of the versions.
FIXED = ("report", "port", "verdict", "passed", "failed", "not examined", "floors")


@dataclass(frozen=True)
class Row:
    """One port of one report.

    Attributes:
        report: the name of its file, as far as that tells it from the others.
        port: what was found.
        versions: of what the reports differ in, in that order.
    """

    report: str
    port: PortReport
    versions: tuple[str, ...]

    def number_of(self, status: str) -> int:
        return sum(finding.status.value == status for finding in self.port.findings)

    @property
    def verdict(self) -> str:
        return self.port.verdict.value

    @property
    def floors(self) -> str:
        value = self.port.logits_floors
        return "–" if value is None else number(value)

    @property
    def why(self) -> str:
        """Why it is not verified, in a line; nothing where it is."""
        port = self.port
        if port.verdict is Verdict.VERIFIED:
            return ""
        failure = first_failure(port)
        if failure is None:
            return one_line(port.error or "; ".join(port.unmet) or "its logits were not compared")
        names = f" ({', '.join(port.explained_by)})" if port.explained_by else ""
        return f"{one_line(label(failure) + names)}: {one_line(failure.message)}"

    @property
    def cells(self) -> list[str]:
        """As ``FIXED`` and the versions have them."""
        counts = [str(self.number_of(status.value)) for status in Status]
        first = [self.report, one_line(self.port.name), self.verdict]
        return [*first, *counts, self.floors, *self.versions]


@dataclass(frozen=True)
class Matrix:
    """Several reports.

    Attributes:
        names: of their files.
        reports: in the same order.
    """

    names: tuple[str, ...]
    reports: tuple[Report, ...]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Matrix:
        """Raises UsageError for what is no report."""
        return cls(tuple(map(str, paths)), tuple(read_report(path) for path in paths))

    @cached_property
    def _words(self) -> list[dict[str, str]]:
        return [words_of(report.environment) for report in self.reports]

    @cached_property
    def differing(self) -> list[str]:
        """What the reports ran with and differ in."""
        names = dict.fromkeys(name for words in self._words for name in words)
        return [n for n in names if len({words.get(n) for words in self._words}) > 1]

    @property
    def alike(self) -> dict[str, str]:
        """What is the same in all of them."""
        first = self._words[0] if self._words else {}
        return {name: value for name, value in first.items() if name not in self.differing}

    @cached_property
    def rows(self) -> list[Row]:
        short = [Path(name).stem for name in self.names]
        shown = short if len(set(short)) == len(short) else self.names
        return [
            Row(one_line(name), port, tuple(words.get(n, "none") for n in self.differing))
            for name, report, words in zip(shown, self.reports, self._words, strict=True)
            for port in report.ports
        ]

    @cached_property
    def apart(self) -> list[str]:
        """A line for each report that cannot be compared with the first one."""
        lines = []
        for name, report in zip(self.names[1:], self.reports[1:], strict=True):
            names = (self.names[0], name)
            try:
                require_comparable(self.reports[0], report.checkpoint, report.inputs, names)
            except UsageError as error:
                lines.append(one_line(error))
        return lines

    @property
    def exit_status(self) -> int:
        """1 where a port is refuted, 2 where one is not judged or a report has none, else 0."""
        found = {_STATUS[report.verdict] for report in self.reports} or {2}
        return 1 if 1 in found else max(found)

    @property
    def headline(self) -> str:
        verdicts = [row.port.verdict for row in self.rows]
        counts = [f"{verdicts.count(v)} {v.value}" for v in Verdict if v in verdicts]
        reports, ports = count(len(self.reports), "report"), count(len(verdicts), "port")
        return f"{reports}, {ports}: {', '.join(counts) or 'nothing was judged'}"


def terminal(matrix: Matrix) -> str:
    """The table as text, as wide as it is; then why what is not verified is not."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for name in (*FIXED, *matrix.differing):
        table.add_column(name, no_wrap=True)
    for row in matrix.rows:
        table.add_row(*map(Text, row.cells))
    console = Console(width=10_000, no_color=True, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    unverified = [row for row in matrix.rows if row.why]
    lines += [f"{row.report}: {one_line(row.port.name)}: {row.why}" for row in unverified]
    lines += [f"not comparable: {line}" for line in matrix.apart]
    if matrix.alike:
        alike = ", ".join(f"{name} {value}" for name, value in matrix.alike.items())
        lines.append(f"the same in all: {alike}")
    return "\n".join([*lines, matrix.headline]) + "\n"


def html(matrix: Matrix) -> str:
    """The table as one page."""
    context = {"matrix": matrix, "fixed": FIXED}
    return assemble("matrix.html", context, styles=["base.css"], scripts=[])
