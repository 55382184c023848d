"""The lens as one HTML page: heat maps that can be reshaded, read cell by cell, and compared.

The first view is in the page as it is; the script only reshades it, and says more where the reader
points. All shades are decided here and handed over, so that the page and the picture agree.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_verify.judging.lens import LensReport, Reading
from gpt_verify.judging.selection import is_default
from gpt_verify.lens.statistics import UNDEFINED, Lens
from gpt_verify.report.lens.colours import hexadecimal, ink, palette
from gpt_verify.report.lens.picture import (
    VIEWS,
    Panel,
    Shade,
    View,
    following,
    hits,
    mean_loss,
    panels,
    part_name,
    row_name,
    rows,
    shade,
)
from gpt_verify.report.page import assemble
from gpt_verify.text import one_line

#: Of a level that does not exist, in the bytes that are handed to the script.
NO_LEVEL = 255
#: Steps between no attention and all of it, in the same bytes.
STEPS = 250


@dataclass(frozen=True)
class Row:
    """One state in a table."""

    n: int
    name: str
    site: str
    between: bool
    loss: float | None


@dataclass(frozen=True)
class Table:
    """One panel as the template draws it."""

    panel: Panel
    names: dict[int, str]
    scale: Shade
    view: View

    @property
    def rows(self) -> list[Row]:
        lens, losses = self.panel.lens, mean_loss(self.panel.lens)
        blocks = rows(lens, sub_blocks=False)
        return [
            Row(
                n,
                row_name(lens.sites[n]),
                lens.sites[n],
                n not in blocks,
                None if math.isnan(losses[n]) else float(losses[n]),
            )
            for n in rows(lens, sub_blocks=True)
        ]

    @property
    def cells(self) -> list[list[tuple[str, str]]]:
        """``(class, text)`` of every cell, by state."""
        lens = self.panel.lens
        levels = self.scale.levels(self.panel.values(self.view.name))
        hit, other = hits(lens), self.panel.differs
        return [
            [
                (_classes(levels[n, t], hit[n, t], other[n, t]), self._name(lens.top1_NT[n, t]))
                for t in range(len(lens.tokens_T))
            ]
            for n in range(len(lens.sites))
        ]

    @property
    def next(self) -> list[tuple[bool, str]]:
        """Whether the model is right, and the token that follows; the last has none."""
        hit = hits(self.panel.lens)[-1]
        return [
            (bool(hit[t]), "" if token == UNDEFINED else self._name(token))
            for t, token in enumerate(following(self.panel.lens))
        ]

    @property
    def input(self) -> list[str]:
        return [self._name(token) for token in self.panel.lens.tokens_T]

    def _name(self, token: int) -> str:
        return self.names[int(token)] if token != UNDEFINED else "–"


def _classes(level: int, hit: bool, differs: bool) -> str:
    names = [f"c{level}" if level >= 0 else "none"]
    return " ".join(names + ["hit"] * bool(hit) + ["differs"] * bool(differs))


def _shade_rules() -> str:
    """The shades as style."""
    return "\n".join(
        f".c{i} {{ background: {hexadecimal(colour)}; color: {hexadecimal(ink(colour))}; }}"
        for i, colour in enumerate(palette())
    )


def _short(numbers: np.ndarray) -> list[list[float | None]]:
    """Four digits, which is more than a cell or a tooltip shows; None where undefined."""
    return [
        [float(f"{v:.4g}") if math.isfinite(v) else None for v in row] for row in numbers.tolist()
    ]


def _packed(levels: np.ndarray) -> str:
    """One byte for each level, in the order of states and positions."""
    packed = np.where(levels < 0, NO_LEVEL, levels).astype(np.uint8).tobytes()
    return base64.b64encode(packed).decode()


def _attributions(reading: Reading) -> dict[str, Any]:
    """What each sub-block adds to each of two logits, with the names that the page shows."""
    return {
        name: {
            "parts": [part_name(part) for part in found.parts],
            "tokens": [int(token) for token in found.tokens_T],
            "terms": _short(found.terms_ST),
            "logits": _short(found.logits_T[None])[0],
        }
        for name, found in reading.attributions.items()
    }


def _pattern(pattern_HTS: np.ndarray) -> dict[str, Any]:
    """Attention in steps of a 250th, a byte for each number."""
    steps = np.where(np.isfinite(pattern_HTS), np.clip(pattern_HTS, 0, 1) * STEPS, NO_LEVEL)
    packed = base64.b64encode(np.rint(steps).astype(np.uint8).tobytes()).decode()
    return {"heads": len(pattern_HTS), "weights": packed}


def _panel_data(
    panel: Panel, place: dict[int, int], scales: dict[tuple[str, bool], Shade]
) -> dict[str, Any]:
    lens = panel.lens
    numbers = {name: panel.values(name) for name in VIEWS}
    probabilities = lens.top_probabilities.reshape(len(lens.sites), -1)
    return {
        "title": panel.title,
        "difference": panel.difference,
        "sites": list(lens.sites),
        "numbers": {name: _short(found) for name, found in numbers.items()},
        "levels": {
            name: _packed(scales[name, panel.difference].levels(found))
            for name, found in numbers.items()
        },
        # Whose reading it is, and with which it is compared: their panels.
        "reading": place[id(panel.reading)],
        "against": None if panel.against is None else place[id(panel.against)],
        "attributions": {} if panel.difference else _attributions(panel.reading),
        "patterns": {}
        if panel.difference
        else {str(n): _pattern(p) for n, p in panel.reading.patterns.items()},
        # Of a difference: what the port says; the page shows the other's beside it.
        "top": lens.top_ids.reshape(len(lens.sites), -1).tolist(),
        "probabilities": _short(probabilities),
        "k": lens.top_ids.shape[-1],
    }


@dataclass(frozen=True)
class Line:
    """Mean loss over depth, one line of the chart."""

    title: str
    points: list[tuple[float, float, str]]


#: Pixels of the chart of losses.
CHART_WIDTH, CHART_HEIGHT, MARGIN = 620, 190, 44


def _loss_lines(shown: Sequence[Panel]) -> tuple[list[Line], float, list[tuple[float, str]]]:
    """The lines, the largest loss, and where on the axis which state lies."""
    read = [(p, mean_loss(p.lens)) for p in shown if not p.difference]
    known = np.concatenate([losses[np.isfinite(losses)] for _, losses in read])
    if not known.size:
        return [], 0.0, []
    top = float(known.max()) or 1.0
    order = max((p.lens for p, _ in read), key=lambda lens: len(lens.sites)).sites
    step = (CHART_WIDTH - 2 * MARGIN) / max(1, len(order) - 1)
    x = {site: round(MARGIN + i * step, 1) for i, site in enumerate(order)}

    def point(lens: Lens, losses: np.ndarray, n: int) -> tuple[float, float, str]:
        y = round((CHART_HEIGHT - 40) * (1 - losses[n] / top) + 12, 1)
        return x[lens.sites[n]], y, f"{row_name(lens.sites[n])}: {losses[n]:.3f} nats"

    lines = [
        Line(
            panel.title,
            [point(panel.lens, losses, int(n)) for n in np.flatnonzero(np.isfinite(losses))],
        )
        for panel, losses in read
    ]
    every = max(1, math.ceil(34 / step / 2)) * 2 if len(order) > 12 else 1
    blocks = [site for site in order if not site.endswith(".resid_mid")]
    named = [(x[site], row_name(site)) for i, site in enumerate(blocks) if i % every == 0]
    return lines, top, named


def render(report: LensReport, view: View) -> str:
    """The page.

    Args:
        view: by what the cells are shaded at first.
    """
    shown = panels(report)
    scales = {
        (name, difference): scale
        for name, each in VIEWS.items()
        for difference in (False, True)
        if (scale := shade(each, shown, difference)) is not None
    }
    place = {id(panel.reading): n for n, panel in enumerate(shown) if not panel.difference}
    lens = report.reference
    lines, top, named = _loss_lines(shown)
    names = {token: one_line(name) for token, name in report.names.items()}
    return assemble(
        "lens.html",
        {
            "report": report,
            "names": names,
            "is_default": is_default(Path(str(report.checkpoint.get("path", "?")))),
            "views": VIEWS,
            "first": view,
            "scales": scales,
            "tables": [Table(p, names, scales[view.name, p.difference], view) for p in shown],
            "lines": lines,
            "largest_loss": top,
            "axis": named,
            "chart": {"width": CHART_WIDTH, "height": CHART_HEIGHT, "margin": MARGIN},
            "shades": range(len(palette())),
            "broken": [r for r in report.readings if r.error is not None],
            "data": {
                "names": {str(token): name for token, name in names.items()},
                "tokens": [int(token) for token in lens.tokens_T],
                "views": {n: {"title": v.title, "kind": v.kind} for n, v in VIEWS.items()},
                "first": view.name,
                "steps": STEPS,
                "shades": len(palette()),
                "panels": [_panel_data(panel, place, scales) for panel in shown],
            },
        },
        styles=["base.css", "lens.css"],
        scripts=["tooltip.js", "lens.js", "pinned.js"],
        more_style=_shade_rules(),
    )
