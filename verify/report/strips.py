"""The place of each mark in a chart of scores over depth.

One strip for each kind of site, layers from left to right, score ÷ limit upwards on a logarithmic
scale that all strips of a chart share, so that they can be compared by eye.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_verify.findings import Status
from gpt_verify.report.evidence import Check, Numbered
from gpt_verify.text import layer_and_kind

#: Pixels.
HEIGHT, HEIGHT_WITHOUT_SCORES, GAP, PADDING = 26, 14, 4, 4
LABEL, WORST, HEAD, FOOT = 96, 56, 22, 22
#: The smallest score ÷ limit that has a height of its own; what is less lies on the ground.
LEAST = 1e-3


@dataclass(frozen=True)
class Scale:
    """Heights in a strip: logarithmic below the limit, and above it logarithmic with a step of its
    own, since what is right spans one or two powers of ten and what is wrong may span sixteen.

    Attributes:
        low: the power of ten at the ground.
        high: the power of ten at the ceiling.
        middle: where between them the limit lies, 0 … 1.
    """

    low: int
    high: int
    middle: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Scale:
        """A scale that holds these and the limit."""
        inner = [math.log10(max(r, LEAST)) for r in ratios if 0 < r < math.inf]
        low = min([-1, *(math.floor(value) for value in inner)])
        high = max([1, *(math.ceil(value) for value in inner)])
        # What is infinitely wrong lies a step above all that is not.
        return cls(low, high + (math.inf in ratios), 0.5 if max(ratios, default=0) > 1 else 0.8)

    def height(self, ratio: float) -> float:
        """Pixels above the ground."""
        value = min(math.log10(max(ratio, 10.0**self.low)), self.high)
        above = value / self.high * (1 - self.middle)
        share = self.middle + (above if value > 0 else -value / self.low * self.middle)
        return share * (HEIGHT - 2 * PADDING)


@dataclass(frozen=True)
class Mark:
    """One finding."""

    item: Numbered
    x: float
    y: float
    column: int
    strip: int

    @property
    def scored(self) -> bool:
        return self.item.ratio is not None

    @property
    def status(self) -> str:
        return self.item.finding.status.value


@dataclass(frozen=True)
class Strip:
    """All sites of one kind."""

    name: str
    top: float
    limit_y: float
    marks: tuple[Mark, ...]

    @property
    def worst(self) -> float | None:
        return max((m.item.ratio for m in self.marks if m.item.ratio is not None), default=None)

    @property
    def failed(self) -> bool:
        return any(mark.status == Status.FAILED for mark in self.marks)

    @property
    def failed_without_score(self) -> bool:
        """Something is wrong that no score tells: a shape, or the order of computation."""
        return any(mark.status == Status.FAILED and not mark.scored for mark in self.marks)

    @property
    def line(self) -> str:
        """Points of a line through the marks that have a height."""
        return " ".join(f"{m.x:.1f},{m.y:.1f}" for m in self.marks if m.scored)


@dataclass(frozen=True)
class Chart:
    """One check at every site."""

    check: Check
    pitch: float
    scale: Scale
    strips: tuple[Strip, ...]
    columns: tuple[tuple[float, str], ...]
    first: Mark | None

    #: For the template, which draws what is measured here.
    label = LABEL

    @property
    def scored(self) -> bool:
        return any(strip.worst is not None for strip in self.strips)

    @property
    def tall(self) -> int:
        """The height of one strip."""
        return HEIGHT if self.scored else HEIGHT_WITHOUT_SCORES

    @property
    def right(self) -> float:
        """The right end of the strips."""
        return LABEL + self.pitch * len(self.columns)

    @property
    def width(self) -> float:
        return self.right + (WORST if self.scored else GAP)

    @property
    def bottom(self) -> float:
        return self.strips[-1].top + self.tall

    @property
    def height(self) -> float:
        return self.bottom + FOOT


def chart(check: Check, first_divergence: str | None) -> Chart | None:
    """The chart of a check, or None where its sites do not lie along the depth of the model."""
    placed = [(layer_and_kind(n.finding.site), n) for n in check.findings if n.finding.site]
    layers = sorted({layer for (layer, _), _ in placed if layer is not None})
    if not layers:
        return None
    n_layer = layers[-1] + 1
    kinds = list(dict.fromkeys(kind for (_, kind), _ in placed))
    # What has no layer comes before the first one or after the last one.
    begin = next(i for i, ((layer, _), _) in enumerate(placed) if layer is not None)
    pitch = min(24.0, max(9.0, 760 / (n_layer + 2)))
    ratios = [n.ratio for _, n in placed if n.ratio is not None]
    scale, tall = Scale.of(ratios), HEIGHT if ratios else HEIGHT_WITHOUT_SCORES
    strips = []
    for row, kind in enumerate(kinds):
        top = HEAD + row * (tall + GAP)
        marks = []
        for order, ((layer, own), item) in enumerate(placed):
            if own != kind:
                continue
            column = (0 if order < begin else n_layer + 1) if layer is None else layer + 1
            x = LABEL + (column + 0.5) * pitch
            y = _above_ground(item, scale) if ratios else tall / 2
            marks.append(Mark(item, round(x, 1), round(top + tall - y, 1), column, row))
        limit_y = round(top + tall - PADDING - scale.height(1.0), 1)
        strips.append(Strip(kind, top, limit_y, tuple(marks)))
    every = [mark for strip in strips for mark in strip.marks]
    first = next((m for m in every if m.item.finding.site == first_divergence), None)
    step = next(s for s in (1, 2, 4, 5, 10, 20, 50, 100) if s * pitch >= 18)
    names = ["in", *(str(i) if i % step == 0 else "" for i in range(n_layer)), "out"]
    columns = tuple((LABEL + (i + 0.5) * pitch, name) for i, name in enumerate(names))
    return Chart(check, pitch, scale, tuple(strips), columns, first)


def _above_ground(item: Numbered, scale: Scale) -> float:
    """Pixels from the lower edge of a strip. What fails without a score lies at the ceiling."""
    ratio = item.ratio
    if ratio is None:
        ratio = math.inf if item.finding.status is Status.FAILED else 0.0
    return PADDING + scale.height(ratio)
