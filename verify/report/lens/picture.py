"""What is drawn: which states in which order, in which shade, and what a cell says.

A *view* is one number for each state and position by which the cells are shaded: the probability of
the top-1, or one of the statistics of the lens. A *panel* is one table of cells: a reading, or how
far a port's reading is from the reference's, or from another port's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import UsageError
from gpt_verify.lens.attribution import BIAS
from gpt_verify.lens.statistics import STATISTICS, UNDEFINED, Lens
from gpt_verify.report.lens.colours import LEVELS
from gpt_verify.text import layer_and_kind, nearest

if TYPE_CHECKING:
    from gpt_verify.judging.lens import LensReport, Reading

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

PROBABILITY = "probability"


@dataclass(frozen=True)
class View:
    """One way of shading.

    Attributes:
        name: ``probability``, or a field of ``Lens``.
        bright: which end is drawn bright: the one near to what the model ends up saying.
    """

    name: str
    title: str
    kind: Literal["rank", "nats", "fraction"]
    bright: Literal["low", "high"]
    meaning: str


#: By name; the first is what is shown where nothing is asked for.
VIEWS: dict[str, View] = {
    PROBABILITY: View(
        PROBABILITY,
        "top-1 and its probability",
        "fraction",
        "high",
        "How sure this state is of the token that it would predict.",
    )
} | {
    s.name: View(s.name, s.title, s.kind, s.better or "low", s.meaning) for s in STATISTICS.values()
}


def view(name: str) -> View:
    """A view by its name.

    Raises:
        UsageError: there is no such view; the message lists them.
    """
    if name not in VIEWS:
        raise UsageError(f"no statistic {name}: there are {', '.join(VIEWS)}{nearest(name, VIEWS)}")
    return VIEWS[name]


def values(lens: Lens, name: str) -> Floats:
    """The numbers of a view, float64[N, T]; NaN where they are undefined."""
    if name == PROBABILITY:
        return np.asarray(lens.top_probabilities[..., 0], np.float64)
    found = lens.statistic(name)
    if np.issubdtype(found.dtype, np.integer):
        return np.where(found == UNDEFINED, np.nan, found).astype(np.float64)
    return np.asarray(found, np.float64)


@dataclass(frozen=True)
class Shade:
    """A scale that turns numbers into levels of brightness.

    Attributes:
        low, high: the numbers at the two ends.
        log: equal factors, not equal steps, are equally far apart; of a scale that begins at 0,
            equal factors of 1 + x.
        bright: which end is bright.
    """

    low: float
    high: float
    log: bool
    bright: Literal["low", "high"]

    @classmethod
    def of(cls, view: View, found: Sequence[Floats]) -> Shade:
        """One for all these numbers, so that panels can be compared."""
        finite = _finite(found)
        largest = float(finite.max(initial=0.0))
        if view.kind == "fraction":
            # A probability has a scale of its own; a distance has that of what occurs.
            return cls(0.0, 1.0 if view.name == PROBABILITY else largest or 1.0, False, view.bright)
        return cls(0.0, largest or 1.0, True, view.bright)

    @classmethod
    def of_differences(cls, found: Sequence[Floats]) -> Shade:
        """A scale for sizes of differences, of which only the power of ten is of interest.

        Both ends are 0 where there is no difference at all.
        """
        finite = _finite(found)
        positive = finite[finite > 0]
        if not positive.size:
            return cls(0.0, 0.0, False, "high")
        low = 10.0 ** math.floor(math.log10(positive.min()))
        high = 10.0 ** math.ceil(math.log10(positive.max()))
        return cls(low, high if high > low else 10 * low, True, "high")

    @property
    def ends(self) -> tuple[float, float]:
        """The numbers at the dark and at the bright end."""
        return (self.low, self.high) if self.bright == "high" else (self.high, self.low)

    def levels(self, numbers: Floats) -> Ints:
        """Level of each number, 0 the darkest; -1 where it is undefined."""
        if self.low == self.high:
            share = np.where(np.isnan(numbers), np.nan, 0.0)
        elif self.log:
            shift = 1.0 if self.low == 0 else 0.0
            ends = math.log(self.low + shift), math.log(self.high + shift)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = (np.log(numbers + shift) - ends[0]) / (ends[1] - ends[0])
        else:
            share = (numbers - self.low) / (self.high - self.low)
        share = np.clip(share, 0.0, 1.0)
        share = 1.0 - share if self.bright == "low" else share
        defined = ~np.isnan(numbers)
        found = np.full(numbers.shape, -1, np.int64)
        found[defined] = np.rint(share[defined] * (LEVELS - 1)).astype(np.int64)
        return found


def _finite(found: Sequence[Floats]) -> Floats:
    flat = np.concatenate([np.ravel(f) for f in found]) if found else np.zeros(0)
    finite: Floats = flat[np.isfinite(flat)]
    return finite


@dataclass(frozen=True)
class Panel:
    """One table of cells.

    Attributes:
        title: whose reading it is.
        reading: the reading itself.
        against: the reference or another port, where the panel shows the distance from it.
    """

    title: str
    reading: Reading
    against: Reading | None = None

    @property
    def lens(self) -> Lens:
        return _lens(self.reading)

    @property
    def difference(self) -> bool:
        return self.against is not None

    def values(self, name: str) -> Floats:
        """The numbers of a view; of a difference its size."""
        own = values(self.lens, name)
        if self.against is None:
            return own
        mine, theirs = self._common(_lens(self.against))
        size = np.full(own.shape, np.nan)
        size[mine] = np.abs(own[mine] - values(_lens(self.against), name)[theirs])
        return size

    def _common(self, other: Lens) -> tuple[list[int], list[int]]:
        """The places of the states that both show, here and there."""
        common = [site for site in self.lens.sites if site in other.sites]
        return [self.lens.sites.index(s) for s in common], [other.sites.index(s) for s in common]

    @cached_property
    def differs(self) -> NDArray[np.bool_]:
        """Whether the top-1 is another one than on the other side, bool[N, T]."""
        found = np.zeros(self.lens.top1_NT.shape, np.bool_)
        if self.against is not None:
            mine, theirs = self._common(_lens(self.against))
            found[mine] = self.lens.top1_NT[mine] != _lens(self.against).top1_NT[theirs]
        return found


def _lens(reading: Reading) -> Lens:
    assert reading.lens is not None, "what could not be read is not drawn"
    return reading.lens


def panels(report: LensReport) -> list[Panel]:
    """Every reading, then how far each port's is from the reference's, and each from each other."""
    read = [r for r in report.readings if r.lens is not None]
    pairs = sorted(combinations(range(len(read)), 2))
    return [Panel(r.name, r) for r in read] + [
        Panel(f"{read[b].name} − {read[a].name}", read[b], read[a]) for a, b in pairs
    ]


def shade(view: View, shown: Sequence[Panel], difference: bool) -> Shade | None:
    """The shade that all readings share, or all differences; None where there are none."""
    same = [p for p in shown if p.difference is difference]
    if not same:
        return None
    found = [p.values(view.name) for p in same]
    return Shade.of_differences(found) if difference else Shade.of(view, found)


def rows(lens: Lens, sub_blocks: bool) -> list[int]:
    """States from the last, which is drawn on top, to the first."""
    kept = [
        i
        for i, site in enumerate(lens.sites)
        if sub_blocks or not site.endswith(".resid_mid") or i == len(lens.sites) - 1
    ]
    return kept[::-1]


def row_name(site: str) -> str:
    """``h.3.resid_post`` is ``3``, ``h.3.resid_mid`` is ``3 attn``."""
    layer, kind = layer_and_kind(site)
    if layer is None:
        return site
    return {"resid_post": str(layer), "resid_mid": f"{layer} attn"}.get(kind, site)


def part_name(part: str) -> str:
    """``h.3.attn.out`` is ``3 attn``, ``h.3.mlp.out`` is ``3 mlp``, ``h.3`` is ``3``."""
    layer, kind = layer_and_kind(part)
    if layer is None:
        return {BIAS: "ln_f bias"}.get(part, part.removeprefix("h."))
    return f"{layer} {kind.removesuffix('.out')}"


def following(lens: Lens) -> Ints:
    """The token that follows each, [T]; ``UNDEFINED`` at the end."""
    return np.append(lens.tokens_T[1:], UNDEFINED)


def hits(lens: Lens) -> NDArray[np.bool_]:
    """Whether the top-1 is the token that follows, bool[N, T]."""
    return np.asarray(lens.top1_NT == following(lens), np.bool_)


def mean_loss(lens: Lens) -> Floats:
    """Mean loss of each state over the positions that have a next token, [N]; NaN without one."""
    loss_NT = np.asarray(lens.loss_nats, np.float64)
    if loss_NT.shape[1] < 2:
        return np.full(len(loss_NT), np.nan)
    return np.asarray(loss_NT[:, :-1].mean(axis=1), np.float64)


def describe_number(value: float, view: View) -> str:
    """A number in a cell: short."""
    if math.isnan(value):
        return "–"
    if view.kind == "rank":
        return str(round(value)) if value < 10_000 else f"{value / 1000:.0f}k"
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
