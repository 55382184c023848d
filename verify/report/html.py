"""The report as one HTML page: for somebody who opens it from a CI run and asks what is wrong.

What it says is complete without a script: the script adds tooltips, arrow keys and jumps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gpt_verify.faults.fault import Fault
from gpt_verify.findings import Cause, Finding, PortReport, Report, Status, Verdict
from gpt_verify.judging.selection import is_default
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.reference.config import Config
from gpt_verify.report.evidence import Law, Numbered, by_law, statistics
from gpt_verify.report.following import diagnosis
from gpt_verify.report.page import assemble
from gpt_verify.report.strips import Chart, chart
from gpt_verify.sites import Site, sites
from gpt_verify.text import (
    collapse_sites,
    failures_by_check,
    first_failure,
    headline,
    not_examined,
    one_line,
    ratio,
    tally,
    was_compared,
    weights_words,
    worst,
)

#: Laws that judge an operation on the port's own input: what fails there is wrong there.
_LOCAL = ("architecture", "activations.local")

#: Pixels between the margins of pages/base.css.
PAGE_WIDTH = 1224


@dataclass(frozen=True)
class PortView:
    """One port, as the page shows it."""

    key: str
    port: PortReport
    repeat: str
    table: dict[str, Site]

    @cached_property
    def laws(self) -> list[Law]:
        return by_law(self.port.findings)

    @cached_property
    def counts(self) -> dict[str, int]:
        found = [finding.status for finding in self.port.findings]
        return {status.value: found.count(status) for status in Status}

    @property
    def compared(self) -> bool:
        return was_compared(self.port)

    @cached_property
    def charts(self) -> list[Chart]:
        """Every check that has sites along the depth and was made at one of them at least.

        Those with scores come first.
        """
        checks = [c for law in self.laws for c in law.checks if c.status != Status.NOT_EXAMINED]
        made = [chart(check, self.port.first_divergence) for check in checks]
        return sorted((c for c in made if c is not None), key=lambda c: not c.scored)

    @property
    def all_at_once(self) -> bool:
        """Whether the model is so shallow that three charts lie side by side."""
        return 3 * max((c.width + 24 for c in self.charts), default=0) < PAGE_WIDTH

    @cached_property
    def shown(self) -> Chart | None:
        """The chart to look at first: where the divergence was seen, else the last local one."""
        if not self.charts:
            return None
        if self.failure is not None:
            for made in self.charts:
                if made.check.id == self.failure.finding.id:
                    return made
        local = [c for c in self.charts if c.check.id in _LOCAL]
        return [*self.charts, *local][-1]

    @cached_property
    def failure(self) -> Numbered | None:
        """The failure to show first."""
        found = first_failure(self.port)
        if found is None:
            return None
        index = next(i for i, finding in enumerate(self.port.findings) if finding is found)
        return Numbered(index, found)

    @property
    def origin(self) -> Site | None:
        """The operation at which the port goes wrong by itself, where a score shows that."""
        found = None if self.failure is None else self.failure.finding
        if found is None or found.id not in _LOCAL or not found.site or found.score is None:
            return None
        return self.table.get(found.site)

    @property
    def causes(self) -> list[tuple[Cause, Fault | None]]:
        """What explains the failures, with what the catalogue says of it."""
        found = self.port.causes or [Cause(name) for name in self.port.explained_by]
        return [(cause, CATALOGUE.get(cause.fault)) for cause in found]

    @property
    def failed_checks(self) -> str:
        return failures_by_check(self.port.findings)

    @property
    def unseen(self) -> list[tuple[str, str, str]]:
        return not_examined(self.port)

    @property
    def following(self) -> str | None:
        """What to run next, of a port that is refuted."""
        return diagnosis(self.repeat) if self.failure is not None else None

    @property
    def weights(self) -> str:
        return weights_words(self.port.weights_from)

    def worst(self, part: str) -> Finding | None:
        return worst(self.port.findings, part)


def sentence(report: Report) -> str:
    """The verdict in one sentence, and how much of the ports it is about."""
    return f"{_verdict(report)} {tally(report)}."


def _verdict(report: Report) -> str:
    ports = report.ports
    if not ports:
        return "Not judged: there was no port."
    if report.verdict is Verdict.VERIFIED:
        who = f"{one_line(ports[0].name)} is" if len(ports) == 1 else f"all {len(ports)} ports are"
        return f"Verified: {who} the model of this checkpoint, in everything that was examined."
    at_fault = [port for port in ports if port.verdict is report.verdict]
    name = one_line(at_fault[0].name)
    several = f"{len(at_fault)} of {len(ports)} ports"
    if report.verdict is Verdict.UNJUDGED:
        unmet = "; ".join(at_fault[0].unmet)
        why = one_line(at_fault[0].error or unmet or "its logits were not compared")
        who = several if len(at_fault) > 1 else name
        return f"Not judged: {who} ({why.removeprefix(f'{name}: ')})."
    found = first_failure(at_fault[0])
    assert found is not None, "a port is refuted by a failure"
    fails = f"fails {found.id}" + (f" at {found.site}" if found.site else "")
    if len(at_fault) > 1:
        return f"Refuted: {several} are not the model of this checkpoint; {name} {fails}."
    return f"Refuted: {name} is not the model of this checkpoint; it {fails}."


def _sites(report: Report) -> dict[str, Site]:
    config = report.checkpoint.get("config", {})
    return sites(Config(**config)) if config else {}


def _matrix(views: Sequence[PortView]) -> list[tuple[str, bool, list[object]]]:
    """``(check, whether a law begins here, that check of each port)`` in order of appearance."""
    of_port = [{c.id: c for law in view.laws for c in law.checks} for view in views]
    laws: dict[str, dict[str, None]] = {}
    for law in (law for view in views for law in view.laws):
        laws.setdefault(law.name, {}).update(dict.fromkeys(check.id for check in law.checks))
    return [
        (name, i == 0, [checks.get(name) for checks in of_port])
        for names in laws.values()
        for i, name in enumerate(names)
    ]


def render(report: Report, repeats: Sequence[str] = ()) -> str:
    """The page.

    Args:
        report: of a finished run.
        repeats: for each port the command that judges it alone; without it, that of the whole run.
    """
    alone = repeats if len(repeats) == len(report.ports) else [report.repeat] * len(report.ports)
    table = _sites(report)
    views = [
        PortView(f"p{i}", port, repeat, table)
        for i, (port, repeat) in enumerate(zip(report.ports, alone, strict=True))
    ]
    counts = {status.value: sum(view.counts[status.value] for view in views) for status in Status}
    return assemble(
        "report.html",
        {
            "report": report,
            "verdict": report.verdict.value,
            "sentence": sentence(report),
            "headline": headline(report),
            "counts": counts,
            "views": views,
            "matrix": _matrix(views),
            "is_default": is_default(Path(str(report.checkpoint.get("path", "?")))),
        },
        styles=["base.css", "report.css"],
        scripts=["tooltip.js", "report.js"],
        filters={
            "ratio": ratio,
            "statistics": statistics,
            "line": one_line,
            "sites": collapse_sites,
        },
    )
