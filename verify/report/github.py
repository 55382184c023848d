"""What GitHub shows of a run: annotations beside the code, and a summary of the step.

A line that begins with ``::`` is a command to GitHub's runner, and a summary is Markdown. What a
port says of itself is neither: it is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict
from gpt_verify.report import terminal
from gpt_verify.report.compare import terminal as compare_terminal
from gpt_verify.report.compare.comparison import Comparison
from gpt_verify.report.place import Place, place
from gpt_verify.text import collapse_sites, first_failure, headline, one_line

#: GitHub shows so many of one step.
MOST = 10
#: Bytes of a summary: GitHub refuses one of a megabyte.
LARGEST = 900_000


def active(environment: Mapping[str, str] = os.environ) -> bool:
    return environment.get("GITHUB_ACTIONS") == "true"


def marks(report: Report, compared: Comparison | None = None) -> list[str]:
    """A command for each check that failed and each port that was not judged, the ports in turn;
    where there are more than are shown, the last one counts the rest."""
    found = list(_all(report))
    if compared is not None and compared.worse:
        found.insert(0, _error("baseline", compare_terminal.summary(compared)))
    if len(found) <= MOST:
        return found
    rest = len(found) - MOST + 1
    return [*found[: MOST - 1], _error("gpt-verify", f"{rest} more; the log has all of them")]


def _all(report: Report) -> Iterator[str]:
    turns = [list(_of_port(port)) for port in report.ports]
    for turn in range(max(map(len, turns), default=0)):
        yield from (found[turn] for found in turns if turn < len(found))


def _of_port(port: PortReport) -> Iterator[str]:
    file = place(port.name)
    if port.verdict is Verdict.UNJUDGED:
        why = port.error or "; ".join(port.unmet) or "its logits were not compared"
        yield _error(f"{port.name}: unjudged", why, file)
    checks: dict[str, list[Finding]] = {}
    first = first_failure(port)
    for finding in (*([] if first is None else [first]), *port.findings):
        if finding.status is Status.FAILED:
            checks.setdefault(finding.id, []).append(finding)
    for check, found in checks.items():
        sites = collapse_sites(dict.fromkeys(f.site for f in found if f.site))
        message = one_line(found[0].message)
        if port.explained_by:
            message += f" (explained by {', '.join(port.explained_by)})"
        at = f" at {sites}" if sites else ""
        yield _error(f"{port.name}: {check} fails{at}", message, file)


def _error(title: str, message: str, file: Place | None = None) -> str:
    where = ""
    if file is not None:
        line = f"line={file.line}," if file.line else ""
        where = f"file={_property(file.file)},{line}"
    return f"::error {where}title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(report: Report, compared: Comparison | None = None) -> str:
    """Markdown: the headline, a table of the ports, and the report as the terminal has it."""
    lines = [f"### gpt-verify: {_escaped(headline(report))}", ""]
    if compared is not None:
        lines += [_escaped(f"Since {compared.names[0]}: {compare_terminal.summary(compared)}"), ""]
    lines += ["| port | verdict | diverges at | explained by |", "|---|---|---|---|"]
    for port in report.ports:
        cells = (
            port.name,
            port.verdict.value,
            port.first_divergence or "",
            ", ".join(port.explained_by),
        )
        lines.append(f"| {' | '.join(map(_escaped, cells))} |")
    whole = terminal.render(report)
    if compared is not None:
        whole += "\n" + compare_terminal.render(compared)
    # In such a block nothing is Markdown, blank lines included.
    lines += ["", "<details><summary>The whole report</summary>", "", f"<pre>{_cut(whole)}</pre>"]
    return "\n".join([*lines, "</details>", ""]) + "\n"


def _escaped(text: str) -> str:
    """Text that no Markdown is in: whatever could be a sign of it is written as its number."""
    return "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in one_line(text))


def _cut(text: str) -> str:
    shown = escape(text, quote=False)
    while len(shown.encode()) > LARGEST:
        text = text[: len(text) * 9 // 10]
        shown = escape(text, quote=False) + "\n… (cut: the log has all of it)"
    return shown


def write_summary(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Add it to the step's summary, where there is one; why that cannot be done, or None.

    It is no verdict: that it fails changes none.
    """
    where = environment.get("GITHUB_STEP_SUMMARY")
    if not where:
        return None
    try:
        with Path(where).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        return f"GITHUB_STEP_SUMMARY: {one_line(error)}"
    return None
