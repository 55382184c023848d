"""The report for a person: what was proved of each port, where it fails, what was not seen."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_verify.errors import GptVerifyError
from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict
from gpt_verify.judging.selection import is_default
from gpt_verify.report.following import diagnosis
from gpt_verify.report.mapping import mapping_lines
from gpt_verify.report.sentences import sentences
from gpt_verify.text import (
    count,
    failures_by_check,
    first_failure,
    headline,
    label,
    not_examined,
    number,
    one_line,
    ratio,
    was_compared,
    weights_words,
    worst,
)

#: Of the table, always: it never grows wider, so that it survives a CI log, and in a narrower
#: terminal it folds at the edge, where rich would leave out the last column without a word.
WIDTH = 100
_WEIGHTS = {"checkpoint": "weights converted", "both": "weights of both"}
_COLOUR = {Verdict.VERIFIED: "green", Verdict.REFUTED: "bold red", Verdict.UNJUDGED: "yellow"}


def _rating(finding: Finding | None) -> str:
    """How near the worst site comes to its limit, and which site that is."""
    if finding is None:
        return "-"
    value = ratio(finding)
    return f"{'-' if value is None else number(value)}\n{finding.site or finding.id}"


def _row(port: PortReport) -> list[Text]:
    unseen = sum(f.status is Status.NOT_EXAMINED for f in port.findings)
    floors = "-" if port.logits_floors is None else number(port.logits_floors)
    if not was_compared(port):
        own = "nothing compared"
    else:
        own = _WEIGHTS.get(port.weights_from, "weights of its own")
    return [
        Text.assemble(one_line(port.name), "\n", (own, "dim")),
        Text(f"{port.dtype}\n{port.device}"),
        Text.assemble(
            (port.verdict.value, _COLOUR[port.verdict]), "\n", port.first_divergence or ""
        ),
        Text(_rating(worst(port.findings, "local"))),
        Text(_rating(worst(port.findings, "cascaded"))),
        Text(floors),
        Text(str(unseen)),
    ]


def _table(ports: Iterable[PortReport]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    # The widths add up to WIDTH with the blanks between them.
    table.add_column("port\nweights", min_width=18, max_width=21, overflow="fold")
    table.add_column("dtype\ndevice", width=8)
    table.add_column("verdict\ndiverges at", width=17, overflow="fold")
    table.add_column("worst local\nscore ÷ limit", width=17, overflow="fold")
    table.add_column("worst cascaded\nscore ÷ limit", width=17, overflow="fold")
    table.add_column("logits\nfloors", width=7, justify="right")
    table.add_column("not\nexamined", width=8, justify="right")
    for port in ports:
        table.add_row(*_row(port))
    return table


class _Page:
    """Lines of text, in colour where that is wanted; what a port says is never read as markup."""

    def __init__(self, colour: bool) -> None:
        self._stream = io.StringIO()
        self._console = Console(
            file=self._stream,
            width=WIDTH,
            force_terminal=colour,
            color_system="standard" if colour else None,
            no_color=None if colour else True,
            markup=False,
            highlight=False,
            emoji=False,
            legacy_windows=False,
            # In a notebook rich would show each line there, and write nothing.
            force_jupyter=False,
        )

    def line(self, text: str = "", style: str = "") -> None:
        # Not wrapped: a command is to be copied, a message is to be searched for.
        self._console.print(Text(text, style=style), soft_wrap=True)

    def table(self, table: Table) -> None:
        self._console.print(table)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._stream.getvalue().splitlines()) + "\n"


def _raised(exception: BaseException | None) -> bool:
    """Whether somebody else's code raised; what this package says needs no traceback."""
    if isinstance(exception, GptVerifyError):
        exception = exception.__cause__
    return exception is not None and not isinstance(exception, GptVerifyError)


def _failure(page: _Page, port: PortReport, finding: Finding, repeat: str) -> None:
    at = f" at {finding.site}" if finding.site else ""
    page.line()
    page.line(f"{one_line(port.name)}: refuted{at}", style="bold red")
    head = f"  {label(finding)}"
    if finding.score is not None and finding.limit is not None:
        head += f": score {number(finding.score)}, limit {number(finding.limit)}"
    page.line(head)
    page.line(f"  {one_line(finding.message)}")
    if port.explained is not None:
        page.line(f"  {port.explained}")
    for sentence in sentences(port.causes):
        page.line(f"    {sentence}")
    page.line(f"  failed checks: {failures_by_check(port.findings)}")
    page.line(f"  weights: {weights_words(port.weights_from)}")
    page.line(f"  repeat: {repeat}")
    if following := diagnosis(repeat):
        page.line(f"  next: {following}")


def _mapping(page: _Page, port: PortReport, whole: bool) -> None:
    """Which parameter was taken for which tensor, and how sure that is.

    Args:
        whole: every one of them, where nothing else takes the place.
    """
    sure = sum(place.sure for place in port.mapping.values())
    page.line()
    page.line(
        f"{one_line(port.name)}: {count(len(port.mapping), 'parameter')}, "
        f"{sure} found by content, bit for bit"
    )
    doubtful = {name: place for name, place in port.mapping.items() if not place.sure}
    for line in mapping_lines(port.mapping if whole else doubtful):
        page.line(f"  {one_line(line)}")


def _heading(report: Report) -> str:
    checkpoint, config = report.checkpoint, report.checkpoint.get("config", {})
    sizes = ", ".join(f"{name[2:]} {value}" for name, value in config.items())
    parameters = checkpoint.get("parameters")
    size = f"{parameters:,} parameters" if isinstance(parameters, int) else "parameters unknown"
    path = checkpoint.get("path", "?")
    name = "default checkpoint" if is_default(Path(path)) else f"checkpoint {path}"
    kind = checkpoint.get("architecture", "gpt2")
    said = f"{kind}, " * (kind != "gpt2") + sizes + ", untied" * (not checkpoint.get("tied", True))
    return f"{name}: {size} ({said})"


def _inputs(report: Report) -> str:
    names = ", ".join(report.inputs.get("shapes", {}))
    return f"inputs: {names}; {report.inputs.get('tokens_in_all', '?')} tokens, seed " + str(
        report.inputs.get("seed", "?")
    )


def render(
    report: Report,
    *,
    colour: bool = False,
    repeats: Sequence[str] = (),
) -> str:
    """The whole report as text.

    Args:
        report: of a finished run.
        colour: whether to use escape sequences.
        repeats: for each port the command that judges it alone; without it, that of the whole run.
    """
    page = _Page(colour and "NO_COLOR" not in os.environ)
    page.line(headline(report), style=_COLOUR[report.verdict])
    page.line(_heading(report))
    for remark in report.checkpoint.get("remarks", ()):
        page.line(f"  {one_line(remark)}")
    page.line(_inputs(report))
    page.line()
    page.table(_table(report.ports))
    commands = repeats if len(repeats) == len(report.ports) else [report.repeat] * len(report.ports)
    for port, repeat in zip(report.ports, commands, strict=True):
        if port.error is not None:
            page.line()
            page.line(f"{one_line(port.name)}: could not be judged", style="bold yellow")
            page.line(f"  {one_line(port.error)}")
            if _raised(port.exception):
                page.line("  --debug shows the traceback")
            if not was_compared(port):
                page.line(f"  nothing was compared: {count(len(port.findings), 'check')} not made")
        if port.unmet:
            page.line()
            page.line(f"{one_line(port.name)}: what is required was not examined", "bold yellow")
            for line in port.unmet:
                page.line(f"  {one_line(line)}")
        failure = first_failure(port)
        if failure is not None:
            _failure(page, port, failure, repeat)
    for port in report.ports:
        if port.mapping:
            alone = len(report.ports) == 1 and port.verdict is not Verdict.REFUTED
            _mapping(page, port, whole=alone)
    for port in report.ports:
        for remark in port.remarks:
            page.line()
            page.line(f"{one_line(port.name)}: {one_line(remark)}")
        for waiver in port.waived:
            page.line()
            excuses = count(waiver.failures, "failure")
            page.line(
                f"{one_line(port.name)}: {one_line(waiver.law)} is waived, {excuses}", "yellow"
            )
            page.line(f"  {one_line(waiver.reason)}")
    # Of a port that could not even be built, everything was said above.
    seen = [port for port in report.ports if was_compared(port) or port.error is None]
    unseen = [(port, groups) for port in seen if (groups := not_examined(port))]
    if unseen:
        page.line()
        page.line("Not examined:", style="bold")
    for port, groups in unseen:
        page.line(f"  {one_line(port.name)}")
        for checks, sites, why in groups:
            where = f" at {sites}" if sites else ""
            page.line(f"    {checks}{where}: {why}")
    page.line()
    page.line(summary(report), style=_COLOUR[report.verdict])
    return page.text()


def summary(report: Report) -> str:
    """The verdict in one line."""
    findings = [finding for port in report.ports for finding in port.findings]
    counts = {status: sum(f.status is status for f in findings) for status in Status}
    waivers = sum(len(port.waived) for port in report.ports)
    return (
        f"{report.verdict.value}: {count(len(report.ports), 'port')}, "
        f"{count(len(findings), 'check')}: {counts[Status.PASSED]} passed, "
        f"{counts[Status.FAILED]} failed, {counts[Status.NOT_EXAMINED]} not examined"
        + (f", {count(waivers, 'waiver')}" if waivers else "")
    )
