"""The lens as a picture, drawn by Matplotlib (``pip install .[png]``)."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_verify.errors import MissingDependency, install
from gpt_verify.judging.lens import LensReport
from gpt_verify.lens.statistics import UNDEFINED
from gpt_verify.report.lens.colours import LEVELS, hexadecimal, ink, palette
from gpt_verify.report.lens.picture import (
    Panel,
    Shade,
    View,
    describe_number,
    following,
    hits,
    panels,
    row_name,
    rows,
    shade,
)
from gpt_verify.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches.
CELL_WIDTH, CELL_HEIGHT, LEAST_WIDTH = 0.52, 0.2, 6.0
#: What stands around the cells: layers and the bar of shades; the title and two rows of tokens.
BESIDE, AROUND = 1.5, 2.1
DOTS_PER_INCH = 110
#: Matplotlib refuses pictures of more than 2¹⁶ pixels a side.
LARGEST = 2**16 - 1
LETTERS, LETTER_SIZE = 8, 6.5
#: A token that the model puts first, along the edge; the colour of the page for what passed.
HIT = "#0b63a5"


def require() -> None:
    """Raise MissingDependency where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = f"a picture needs Matplotlib: {install('png')}"
        raise MissingDependency(message) from error


def _known_letters() -> set[int]:
    """What the font can draw; Matplotlib warns of the rest and draws boxes."""
    from matplotlib import font_manager

    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans Mono"))
    return set(font_manager.get_font(path).get_charmap())


def _drawable(text: str, known: set[int]) -> str:
    shown = "".join(c if ord(c) in known else f"\\u{{{ord(c):x}}}" for c in text)
    return shown if len(shown) <= LETTERS else shown[: LETTERS - 1] + "…"


def _draw(
    axes: Axes, panel: Panel, view: View, scale: Shade, names: dict[int, str], kept: list[int]
) -> None:
    """One panel: shades, tokens, and along the edges what was read and what follows."""
    from matplotlib.colors import ListedColormap

    lens = panel.lens
    numbers, hit = panel.values(view.name), hits(lens)
    levels = scale.levels(numbers)[kept]
    colours = [hexadecimal(colour) for colour in palette()]
    axes.imshow(
        np.ma.masked_less(levels, 0),
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=LEVELS - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_facecolor("#bbbbbb")
    style: dict[str, Any] = {
        "family": "DejaVu Sans Mono",
        "fontsize": LETTER_SIZE,
        "parse_math": False,
    }
    for y, n in enumerate(kept):
        for x, token in enumerate(lens.top1_NT[n]):
            if view.name == "probability" or panel.difference:
                text = names[int(token)] if token != UNDEFINED else "–"
            else:
                text = describe_number(float(numbers[n, x]), view)
            shown = levels[y, x]
            colour = hexadecimal(ink(palette()[shown])) if shown >= 0 else "#000000"
            weight = "bold" if hit[n, x] else "normal"
            axes.text(x, y, text, ha="center", va="center", color=colour, weight=weight, **style)
            if panel.differs[n, x]:
                axes.add_patch(_frame(x, y))
    positions = range(len(lens.tokens_T))
    style |= {"rotation": 60}
    read = [names[int(token)] for token in lens.tokens_T]
    axes.set_xticks(list(positions), read, ha="right", rotation_mode="anchor", **style)
    above = axes.secondary_xaxis("top")
    after = [
        f"{'✓' if hit[-1, t] else '✗'} {names[int(token)]}" if token != UNDEFINED else ""
        for t, token in enumerate(following(lens))
    ]
    above.set_xticks(list(positions), after, ha="left", rotation_mode="anchor", **style)
    for t, label in enumerate(above.get_xticklabels()):
        if hit[-1, t]:
            label.set(color=HIT, fontweight="bold")
    axes.set_yticks(range(len(kept)), [row_name(lens.sites[n]) for n in kept], fontsize=7)
    for side in (axes, above):
        side.tick_params(length=0, pad=2)
    axes.set_title(_title(panel, view), fontsize=9, loc="left", pad=44, parse_math=False)


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#c23b00", linewidth=1.2)


def _title(panel: Panel, view: View) -> str:
    if panel.difference:
        what = "probability of the top-1" if view.name == "probability" else view.title
        return f"{panel.title}: size of the difference in {what}; framed: another top-1"
    return f"{panel.title}: {view.title}; bold: the token that follows"


def _bar(figure: Any, axes: Axes, scale: Shade) -> None:
    """The shades from dark to bright, with the numbers at both ends."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([hexadecimal(colour) for colour in palette()])
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=axes, fraction=0.03, pad=0.01)
    bar.set_ticks([0, 1], labels=[number(end) for end in scale.ends], fontsize=7)
    if scale.log:
        bar.set_label("logarithmic", fontsize=7)


def render(report: LensReport, view: View, *, sub_blocks: bool = False) -> bytes:
    """A PNG file: one table of cells for each reading, and for each difference.

    Args:
        view: by what the cells are shaded.
        sub_blocks: show the states after attention too.

    Raises:
        MissingDependency: Matplotlib is not installed.
    """
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(report)
    kept = [rows(panel.lens, sub_blocks) for panel in shown]
    known = _known_letters()
    names = {token: _drawable(name, known) for token, name in report.names.items()}
    width = max(LEAST_WIDTH, BESIDE + CELL_WIDTH * len(report.reference.tokens_T))
    heights = [AROUND + CELL_HEIGHT * len(each) for each in kept]
    dots = min(DOTS_PER_INCH, math.floor(LARGEST / max(width, sum(heights))))
    figure = Figure(figsize=(width, sum(heights)), dpi=dots, layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel, each in zip(drawn, shown, kept, strict=True):
        scale = shade(view, shown, panel.difference)
        assert scale is not None, "the panel itself has one"
        _draw(axes, panel, view, scale, names, each)
        _bar(figure, axes, scale)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
