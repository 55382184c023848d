"""A history as text: what is worse in the newest report first, then a table for each port."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_verify.findings import Finding, Status
from gpt_verify.report.history.course import Course, Fall, History, Step
from gpt_verify.text import collapse_sites, label, number, one_line, ratio

#: Columns of a port's table.
COLUMNS = (
    *("report", "date", "changed", "verdict"),
    *("passed", "failed", "not examined", "floors"),
    *("score ÷ limit", "largest ratio", "worse"),
)


def render(history: History) -> str:
    """The whole history as text, as wide as it is."""
    return "\n".join([*_lines(history), history.headline]) + "\n"


def _lines(history: History) -> Iterator[str]:
    yield "oldest first, by date" if history.dated else UNDATED
    for entry in history.entries:
        if entry.apart:
            yield f"not compared: {entry.apart}"
    for course in history.courses:
        yield ""
        yield f"port {course.name}"
        for fall in course.falls:
            yield from _fall(history, fall)
        yield from _table(history, course)
    yield ""


#: What is said where a date is missing.
UNDATED = "in the order in which they were given: not every report has a date"


def since(history: History, fall: Fall) -> str:
    """``worse since new (2026-01-02 10:00; torch 2.8 → 2.9): 1 verdict and 4 checks``."""
    entry = history.entries[fall.at]
    known = [said for said in (entry.date, entry.changes) if said]
    aside = f" ({'; '.join(known)})" if known else ""
    return f"worse since {entry.name}{aside}: {fall.what}"


def groups(fall: Fall) -> list[tuple[str, str, Finding]]:
    """The checks of a fall: the id, its sites in few words, and the first finding."""
    found: dict[str, list[Finding]] = {}
    for finding in fall.checks:
        found.setdefault(finding.id, []).append(finding)
    return [
        (one_line(name), collapse_sites(one_line(f.site) for f in own if f.site), own[0])
        for name, own in found.items()
    ]


def _fall(history: History, fall: Fall) -> Iterator[str]:
    yield f"  {since(history, fall)}"
    for name, sites, first in groups(fall):
        yield f"    - {name}{f' at {sites}' if sites else ''}"
        if first.status is not Status.PASSED:
            yield f"      e.g. {one_line(first.message)}"


def largest(step: Step) -> str:
    """``2.3 × activations.local[h.0.mlp.act]``: the largest ratio of a score to what it was."""
    if step.largest is None:
        return "–"
    value, pair = step.largest
    times = "no number" if value != value else f"{number(value)} ×"  # NaN alone differs from itself
    return f"{times} {one_line(label(pair.finding))}" if value != 1 else "the same"


def worst(step: Step) -> tuple[float, Finding] | None:
    """The largest score ÷ limit of a port, and which finding has it."""
    rated = [(value, f) for f in step.port.findings if (value := ratio(f)) is not None]
    return max(rated, key=lambda pair: pair[0], default=None)


def cells(history: History, step: Step) -> list[str]:
    """As ``COLUMNS`` has them."""
    entry, port, found = history.entries[step.at], step.port, worst(step)
    worse = None if step.before is None else len(step.before.worse) + step.before.fell
    return [
        entry.name,
        entry.date or "–",
        entry.changes or "–",
        port.verdict.value,
        *(str(step.number_of(status)) for status in Status),
        "–" if port.logits_floors is None else number(port.logits_floors),
        "–" if found is None else f"{number(found[0])} {one_line(label(found[1]))}",
        largest(step),
        "–" if worse is None else str(worse),
    ]


def _table(history: History, course: Course) -> Iterator[str]:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for name in COLUMNS:
        table.add_column(name, no_wrap=True)
    for step in course.steps:
        table.add_row(*map(Text, cells(history, step)))
    console = Console(width=10_000, no_color=True, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    yield from (f"  {line.rstrip()}" for line in capture.get().splitlines())
