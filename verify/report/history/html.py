"""A history as one page: since when something is worse, each report, and each check's scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_verify.findings import Finding, Status
from gpt_verify.report.history.course import Course, History, Step
from gpt_verify.report.history.terminal import (
    COLUMNS,
    UNDATED,
    cells,
    groups,
    largest,
    since,
    worst,
)
from gpt_verify.report.page import assemble
from gpt_verify.report.strips import HEIGHT, PADDING, Scale
from gpt_verify.text import label, number, one_line, ratio

#: Pixels between two reports of a line.
PITCH = 18


@dataclass(frozen=True)
class Line:
    """The largest score ÷ limit of one check, report by report.

    Attributes:
        check: its id.
        cells: the number and a name of its status; empty of a report that has no score of it.
        points: (x, y, status) of each report that has one.
        strokes: points of lines, one for each run of reports that can be compared.
        limit: height of the limit.
    """

    check: str
    cells: list[tuple[str, str, str]]
    points: list[tuple[int, float, str]]
    strokes: list[str]
    limit: float
    width: int


def lines(history: History, course: Course) -> list[Line]:
    """The lines of a port, on one scale, so that they can be compared by eye."""
    places = [step.at for step in course.steps]
    rows = course.scores
    rated = [value for row in rows.values() for f in row if f and (value := ratio(f)) is not None]
    scale = Scale.of(rated)
    return [_line(history, name, row, places, scale) for name, row in rows.items()]


def _line(
    history: History, name: str, row: list[Finding | None], places: list[int], scale: Scale
) -> Line:
    def y(value: float) -> float:
        return round(HEIGHT - PADDING - scale.height(value), 1)

    cells, points = [], []
    strokes: list[list[str]] = [[]]
    for n, finding in enumerate(row):
        value = None if finding is None else ratio(finding)
        if any(history.entries[at].apart for at in range(places[n - 1] + 1, places[n] + 1) if n):
            strokes.append([])
        if finding is None or value is None:
            cells.append(("–", "", ""))
            strokes.append([])
            continue
        status = finding.status.value
        cells.append((number(value), status, one_line(finding.site or "")))
        points.append((PITCH // 2 + n * PITCH, y(value), status))
        strokes[-1].append(f"{points[-1][0]},{points[-1][1]}")
    width = PITCH * len(row)
    drawn = [" ".join(stroke) for stroke in strokes if len(stroke) > 1]
    return Line(one_line(name), cells, points, drawn, y(1.0), width)


@dataclass(frozen=True)
class Row:
    """One report of a port's table, as ``cells`` of the terminal has it, in parts."""

    cells: list[str]
    step: Step

    @property
    def worst(self) -> tuple[str, str, bool]:
        """The largest score ÷ limit, whose it is, and whether that is too large."""
        found = worst(self.step)
        if found is None:
            return "–", "", False
        return number(found[0]), one_line(label(found[1])), found[0] > 1

    @property
    def largest(self) -> tuple[str, str]:
        """The largest ratio, and whose it is."""
        found = self.step.largest
        if found is None or found[0] == 1:
            return largest(self.step), ""
        times = "no number" if math.isnan(found[0]) else f"{number(found[0])} ×"
        return times, one_line(label(found[1].finding))


def render(history: History) -> str:
    """The page."""
    courses = [
        (
            course,
            [(since(history, fall), groups(fall)) for fall in course.falls],
            [Row(cells(history, step), step) for step in course.steps],
            lines(history, course),
            [history.entries[step.at] for step in course.steps],
        )
        for course in history.courses
    ]
    context = {
        "history": history,
        "courses": courses,
        "columns": COLUMNS,
        "undated": "" if history.dated else UNDATED,
        "height": HEIGHT,
        "passed": Status.PASSED,
    }
    return assemble("history.html", context, styles=["base.css", "history.css"], scripts=[])
