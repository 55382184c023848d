"""A score is made of errors and budgets; a limit is the largest score that a correct port reaches.

A score is |error| / budget. Its maximum finds a single wrong element, its root mean square a tiny
error everywhere; the same by position, by head and by channel finds an error that lives in one of
them. The limits follow from the budgets' meaning (``gpt_verify.numerics.budgets``) and one number:
``FALSE_ALARM``, the probability with which a correct port may exceed any one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

FALSE_ALARM = 1e-9


def limit_max(n: int) -> float:
    """Largest of n scores: a union over n sub-Gaussian tails, 2 n exp(-λ²/2) = FALSE_ALARM."""
    return math.sqrt(2.0 * math.log(2.0 * n / FALSE_ALARM))


def limit_rms(rows: int, groups: int = 1) -> float:
    """Largest root mean square over ``groups`` groups of ``rows`` independent rows each.

    Errors within a row share a mean and a scale, so a row counts as one observation. Laurent and
    Massart (2000, lemma 1): χ²_k exceeds k + 2 √(k x) + 2 x with probability at most exp(-x).
    """
    x = math.log(groups / FALSE_ALARM)
    return math.sqrt(1.0 + 2.0 * math.sqrt(x / rows) + 2.0 * x / rows)


@dataclass(frozen=True)
class Statistic:
    """One way of summing up the scores of a site, with the limit that applies to it."""

    name: str
    score: float
    limit: float
    where: int | None = None

    @property
    def ratio(self) -> float:
        return self.score / self.limit


@dataclass(frozen=True)
class Worst:
    """The element with the largest score, in full, so that a reader can look it up."""

    index: tuple[int, ...]
    got: float
    expected: float
    budget: float
    score: float


@dataclass
class _Sums:
    """Sum of squared scores and number of rows, for each member of a grouping."""

    squares: Floats
    elements: Floats
    rows: Floats

    @classmethod
    def of(cls, size: int) -> _Sums:
        return cls(np.zeros(size), np.zeros(size), np.zeros(size))

    def statistic(self, name: str) -> Statistic | None:
        seen = self.elements > 0
        if not seen.any():
            return None
        groups = int(seen.sum())
        rms = np.sqrt(self.squares[seen] / self.elements[seen])
        distinct, which = np.unique(self.rows[seen], return_inverse=True)
        limits = np.array([limit_rms(int(rows), groups) for rows in distinct])[which]
        at = int(np.argmax(np.where(np.isnan(rms), np.inf, rms) / limits))
        where = int(np.flatnonzero(seen)[at])
        return Statistic(name, float(rms[at]), float(limits[at]), where)


@dataclass
class SiteScores:
    """Scores of one site, gathered over every input of a run without keeping them."""

    heads: int = 0
    worst: Worst | None = None
    _n: int = 0
    _rows: int = 0
    _squares: float = 0.0
    _by: dict[str, _Sums] = field(default_factory=dict)

    def add(
        self,
        got: NDArray[np.floating],
        expected: Floats,
        budget: Floats,
        index: tuple[int, ...] = (),
        first_channel: int = 0,
        channels: int | None = None,
        first_head: int = 0,
    ) -> None:
        """Take in one sequence.

        Args:
            got, expected, budget: ``[T, F]``, or ``[H, T, S]`` of which only s ≤ t counts.
            index: prefix of the element's index in the report (the input and the batch row).
            first_channel: where ``F`` begins, when the last axis is handed over in tiles.
            channels: size of the whole last axis; ``F`` unless it comes in tiles.
            first_head: where ``H`` begins, when the heads are handed over in tiles.
        """
        got = np.asarray(got, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            z = np.abs(got - expected) / budget
        # Not a number is never equal to anything, and infinity is not close to it.
        z = np.where(np.isfinite(z), z, np.inf)
        by_head = z.ndim == 3
        if by_head:
            below = np.tri(*z.shape[-2:], dtype=np.bool_)
            z = np.where(below, z, 0.0)
            n = z.shape[0] * int(below.sum())
        else:
            n = z.size
        first = first_channel == 0 and first_head == 0
        self._track_worst(z, got, expected, budget, index, (first_head,) * by_head, first_channel)
        squares = z * z
        rows = z.shape[-2]
        self._n += n
        self._squares += float(squares.sum())
        self._rows += rows * first
        positions = np.arange(rows)
        if by_head:
            sources = below.sum(axis=-1)
            self._group(
                *("position", squares.sum(axis=(0, 2)), sources * z.shape[0], positions, int(first))
            )
            heads = first_head + np.arange(z.shape[0])
            self._group(
                "head", squares.sum(axis=(1, 2)), np.full(len(heads), n / len(heads)), heads, rows
            )
        else:
            width = z.shape[-1]
            self._group(
                "position", squares.sum(axis=1), np.full(rows, width), positions, int(first)
            )
            here = first_channel + np.arange(width)
            self._group("channel", squares.sum(axis=0), np.full(width, rows), here, rows, channels)

    def _group(
        self,
        name: str,
        squares: Floats,
        elements: NDArray[np.integer | np.floating],
        where: NDArray[np.integer],
        rows: int,
        size: int | None = None,
    ) -> None:
        sums = self._by.get(name)
        needed = max(size or 0, int(where[-1]) + 1)
        if sums is None:
            sums = self._by[name] = _Sums.of(needed)
        elif len(sums.rows) < needed:
            grown = _Sums.of(needed)
            for new, old in (
                (grown.squares, sums.squares),
                (grown.elements, sums.elements),
                (grown.rows, sums.rows),
            ):
                new[: len(old)] = old
            sums = self._by[name] = grown
        sums.squares[where] += squares
        sums.elements[where] += elements
        sums.rows[where] += rows

    def _track_worst(
        self,
        z: Floats,
        got: Floats,
        expected: Floats,
        budget: Floats,
        index: tuple[int, ...],
        first_head: tuple[int, ...],
        first_channel: int,
    ) -> None:
        flat = int(np.argmax(z))
        score = float(z.flat[flat])
        if self.worst is not None and score <= self.worst.score:
            return
        at = [int(i) for i in np.unravel_index(flat, z.shape)]
        element = tuple(at)
        at[-1] += first_channel
        at[: len(first_head)] = [at[0] + head for head in first_head]
        self.worst = Worst(
            (*index, *at),
            got=float(got[element]),
            expected=float(expected[element]),
            budget=float(budget[element]),
            score=score,
        )

    @property
    def elements(self) -> int:
        return self._n

    def statistics(self) -> list[Statistic]:
        """Every statistic with its limit; the first two exist wherever anything was compared."""
        if self._n == 0 or self.worst is None:
            return []
        found: list[Statistic | None] = [
            Statistic("rms", math.sqrt(self._squares / self._n), limit_rms(self._rows)),
            Statistic("max", self.worst.score, limit_max(self._n)),
        ]
        by = dict(self._by)
        channel = by.get("channel")
        if self.heads and channel is not None:
            folded = _Sums.of(self.heads)
            folded.squares = channel.squares.reshape(self.heads, -1).sum(axis=1)
            folded.elements = channel.elements.reshape(self.heads, -1).sum(axis=1)
            folded.rows = channel.rows.reshape(self.heads, -1).max(axis=1)
            by["head"] = folded
        found += [sums.statistic(name) for name, sums in by.items()]
        return [statistic for statistic in found if statistic is not None]
