"""The lens in a terminal: layers by tokens, the last layer on top, shaded.

Where there is no colour, the number by which a cell would be shaded stands below its token.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal, TextIO, cast

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from gpt_verify.judging.lens import LensReport
from gpt_verify.lens.statistics import UNDEFINED
from gpt_verify.report.lens.colours import LEVELS, ink, palette
from gpt_verify.report.lens.picture import (
    Panel,
    Shade,
    View,
    describe_number,
    following,
    hits,
    mean_loss,
    panels,
    part_name,
    row_name,
    rows,
    shade,
)
from gpt_verify.text import number, one_line

LABEL, LOSS = 8, 7
NARROWEST, WIDEST = 80, 200
CELL = 8

Colours = Literal["standard", "256", "truecolor", "windows"]


def colours_of(stream: TextIO) -> Colours | None:
    """The colours that a stream can show; None where it is no terminal, or NO_COLOR is set."""
    console = Console(file=stream, legacy_windows=False, force_jupyter=False)
    shown: Any = console.color_system if stream.isatty() and not console.no_color else None
    return cast(Colours | None, shown)


def width_of(stream: TextIO) -> int:
    """The width of the terminal in characters; 100 where there is none, so that a log is the same
    everywhere."""
    return Console(file=stream, force_jupyter=False).width if stream.isatty() else 100


class _Sheet:
    """Lines of text of a given width."""

    def __init__(self, colours: Colours | None, width: int) -> None:
        self.shaded = colours is not None
        self.width = min(max(width, NARROWEST), WIDEST)
        self._stream = io.StringIO()
        self._console = Console(
            file=self._stream,
            width=self.width,
            force_terminal=self.shaded,
            color_system=colours,
            no_color=not self.shaded,
            markup=False,
            highlight=False,
            emoji=False,
            legacy_windows=False,
            # In a notebook rich would show each line there, and write nothing.
            force_jupyter=False,
        )

    def line(self, *parts: str | tuple[str, str | Style], style: str = "") -> None:
        self._console.print(Text.assemble(*parts, style=style), soft_wrap=True)

    def text(self) -> str:
        lines = self._stream.getvalue().splitlines()
        return "\n".join(lines if self.shaded else map(str.rstrip, lines)) + "\n"


def _fit(text: str, width: int) -> str:
    """Exactly so many cells; what is cut off is marked."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"


def _styles() -> list[Style]:
    return [
        Style(color=Color.from_rgb(*ink(colour)), bgcolor=Color.from_rgb(*colour))
        for colour in palette()
    ]


def _blocks(n: int, width: int) -> list[range]:
    """Positions that stand side by side, as evenly as they can."""
    most = max(1, (width - LABEL - LOSS) // CELL)
    count = math.ceil(n / most)
    size = math.ceil(n / count)
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def _heading(sheet: _Sheet, panel: Panel, view: View, scale: Shade) -> None:
    sheet.line((panel.title, "bold"), f": {view.title}")
    if not sheet.shaded:
        return
    styles = _styles()
    bar: list[str | tuple[str, str | Style]] = []
    for i in range(24):
        bar.append((" ", styles[round(i * (LEVELS - 1) / 23)]))
    dark, bright = scale.ends
    sheet.line(
        f"{number(dark)} ",
        *bar,
        f" {number(bright)}{' (logarithmic)' if scale.log else ''}   ",
        ("underlined", "underline"),
        ": the token that follows",
    )


def _table(
    sheet: _Sheet,
    panel: Panel,
    view: View,
    scale: Shade,
    names: dict[int, str],
    sub_blocks: bool,
) -> None:
    lens, numbers, styles = panel.lens, panel.values(view.name), _styles()
    levels, hit, follows = scale.levels(numbers), hits(lens), following(lens)
    losses = mean_loss(lens)
    for block in _blocks(len(lens.tokens_T), sheet.width):
        last = range(block.start, block.stop)
        after = [
            (
                _fit(("✓" if hit[-1, t] else "✗") + names[int(follows[t])], CELL - 1) + " ",
                "bold" if hit[-1, t] else "dim",
            )
            if follows[t] != UNDEFINED
            else (" " * CELL, "")
            for t in last
        ]
        sheet.line((_fit("next", LABEL), "dim"), *after, (f"{'loss':>{LOSS}}", "dim"))
        for n in rows(lens, sub_blocks):
            cells: list[str | tuple[str, str | Style]] = []
            under: list[str] = []
            for t in last:
                top = int(lens.top1_NT[n, t])
                text = names[top] if top != UNDEFINED else "–"
                style = styles[levels[n, t]] if levels[n, t] >= 0 else Style(dim=True)
                if hit[n, t]:
                    style += Style(underline=True, bold=True)
                if panel.differs[n, t]:
                    text = f"≠{text}"
                cells += [(_fit(text, CELL - 1), style), " "]
                under.append(_fit(describe_number(float(numbers[n, t]), view), CELL))
            loss = "" if math.isnan(losses[n]) else f"{losses[n]:.2f}"
            sheet.line((_fit(row_name(lens.sites[n]), LABEL), "dim"), *cells, f"{loss:>{LOSS}}")
            if not sheet.shaded:
                sheet.line(" " * LABEL, *under)
        read = [_fit(names[int(lens.tokens_T[t])], CELL - 1) + " " for t in last]
        sheet.line((_fit("input", LABEL), "dim"), *read)
        sheet.line((_fit("", LABEL), "dim"), *((_fit(str(t), CELL), "dim") for t in last))
        sheet.line()
    legend = "next: the token that follows; ✓ the last layer puts it first, ✗ it does not"
    sheet.line((legend, "dim"))
    sheet.line()


#: What a logit is of, in words.
TARGETS = {"top1": "the token that the reference puts first", "next": "the token that follows"}


def _attributions(sheet: _Sheet, report: LensReport, which: str) -> None:
    """What each sub-block adds to a logit, of every reading: the last one on top, as above."""
    for reading in report.readings:
        found = reading.attributions.get(which)
        if found is None:
            continue
        sheet.line((reading.name, "bold"), f": what adds up to the logit of {TARGETS[which]}")
        tokens = [report.names[int(t)] if t != UNDEFINED else "" for t in found.tokens_T]
        terms = zip(map(part_name, found.parts), found.terms_ST, strict=True)
        shown = [("logit", found.logits_T), *list(terms)[::-1]]
        for block in _blocks(len(tokens), sheet.width):
            last = range(block.start, block.stop)
            sheet.line((_fit("", LABEL), "dim"), *(_fit(tokens[t], CELL - 1) + " " for t in last))
            for name, numbers in shown:
                cells = ["" if math.isnan(numbers[t]) else f"{numbers[t]:.2f}" for t in last]
                style = "bold" if name == "logit" else ""
                label = (_fit(name, LABEL), "dim")
                sheet.line(label, *((f"{cell:>{CELL - 1}} ", style) for cell in cells))
            sheet.line((_fit("", LABEL), "dim"), *((_fit(str(t), CELL), "dim") for t in last))
            sheet.line()


def _shown(panel: Panel, view: View) -> tuple[object, ...]:
    """Everything that a table says, so that none is printed twice."""
    numbers = [describe_number(float(value), view) for value in panel.values(view.name).ravel()]
    losses = [f"{loss:.2f}" for loss in mean_loss(panel.lens)]
    top1 = panel.lens.top1_NT.ravel().tolist()
    return (panel.lens.sites, *top1, *numbers, *losses)


def _differences(sheet: _Sheet, shown: Sequence[Panel], view: View) -> None:
    """Show how far each port is from the reference: a line for each state."""
    for panel in (p for p in shown if p.difference):
        numbers = panel.values(view.name)
        sheet.line((panel.title, "bold"))
        sheet.line((f"{'':<{LABEL}}{'other top-1':>14}{'largest |difference|':>26}", "dim"))
        for n in rows(panel.lens, sub_blocks=True):
            known = numbers[n][~np.isnan(numbers[n])]
            largest = number(float(known.max())) if known.size else "–"
            other = f"{panel.differs[n].sum()} of {len(panel.differs[n])}"
            name = (_fit(row_name(panel.lens.sites[n]), LABEL), "dim")
            sheet.line(name, f"{other:>14}{largest:>26}")
        sheet.line()


def render(
    report: LensReport,
    view: View,
    *,
    colours: Colours | None = None,
    width: int = 100,
    sub_blocks: bool = False,
    attribution: str | None = None,
) -> str:
    """The readings as text.

    The first reading is a table, and so is each that shows anything else. Where there are ports, a
    line for each state says how far they are from the reference.

    Args:
        report: the readings of the reference and of the ports.
        view: by what the cells are shaded.
        colours: what the terminal can do, as rich names it; None for none.
        width: of the terminal.
        sub_blocks: show the states after attention too.
        attribution: of which logit (``top1``, ``next``) the terms are shown; None for neither.
    """
    sheet = _Sheet(colours, width)
    shown = panels(report)
    scale = shade(view, shown, difference=False)
    tables: dict[tuple[object, ...], str] = {}
    for panel in shown:
        if panel.difference or scale is None:
            continue
        first = tables.setdefault(_shown(panel, view), panel.title)
        if first != panel.title:
            sheet.line((panel.title, "bold"), f": what the table of {first} shows, to every digit")
            sheet.line()
            continue
        _heading(sheet, panel, view, scale)
        _table(sheet, panel, view, scale, report.names, sub_blocks)
    _differences(sheet, shown, view)
    if attribution is not None:
        _attributions(sheet, report, attribution)
    for reading in report.readings:
        if reading.error is not None:
            sheet.line((one_line(f"{reading.name}: {reading.error}"), "bold yellow"))
    return sheet.text()
