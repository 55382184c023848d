"""Logits by token, by position and one by one: what a mean over all of them hides.

A port whose logits of one token are off, in a vocabulary of thousands, has the same root mean
square as a correct one. So each error is also checked against a floor of its own: the noise of its
position and of its token. Neither counts as less than that of all, as the noise of few numbers may
be small by chance.

A constant that is added to all logits of a position is nobody's error (softmax does not see it).
It is taken out of the error and of the noise alike, as the mean over the first tile.

The limits are derived from two numbers. A correct port's errors have ``LIMIT_FLOORS`` floors at
most, by root mean square. The largest of n such numbers, or of n means over some of them, is larger
by the factors that sites have (``gpt_verify.numerics.scores``), whose meaning is the same here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.scores import Statistic, limit_max, limit_rms

Floats = NDArray[np.floating]


class Outliers:
    """Gathers what stands out of the logits of a run, without keeping them.

    Args:
        limit: floors of a correct port, by root mean square over everything.
    """

    def __init__(self, n_vocab: int, limit: float) -> None:
        self._limit, self._n_vocab = limit, n_vocab
        self._by_token, self._rows = np.zeros(n_vocab), 0
        self._largest, self._index = 0.0, (0, 0, 0, 0)
        self._position, self._at = 0.0, (0, 0, 0)

    def row(self, index: tuple[int, int], at: Sequence[int] | None = None) -> Row:
        """One sequence is about to be compared: which input, and which of its rows; which of its
        positions, where it is not all."""
        return Row(self, index, at)

    @property
    def worst_element(self) -> tuple[int, ...]:
        """Input, row, position and token of the largest error, in floors."""
        return self._index

    @property
    def worst_position(self) -> tuple[int, ...]:
        """Input, row and position of the largest root mean square over the vocabulary."""
        return self._at

    def statistics(self) -> list[Statistic]:
        """The statistics by token, by position, and of the largest logit of all, in noise
        floors."""
        if not self._rows:
            return []
        token = int(np.argmax(self._by_token))
        mean = float(np.sqrt(self._by_token[token] / self._rows))
        limit = self._limit
        return [
            Statistic("token", mean, limit * limit_rms(self._rows, self._n_vocab), token),
            # The elements of a position share a scale: each position is one observation.
            Statistic("position", self._position, limit * limit_rms(1, self._rows), self._at[-1]),
            Statistic("max", self._largest, limit * limit_max(self._rows * self._n_vocab)),
        ]


class Row:
    """One sequence, tile by tile."""

    def __init__(
        self, gathered: Outliers, index: tuple[int, int], at: Sequence[int] | None = None
    ) -> None:
        self._all, self._index, self._positions = gathered, index, at
        self._shift: Floats = np.zeros(0)
        self._squares: Floats = np.zeros(0)
        self._elements = 0

    def add(self, first: int, deviations: Floats) -> None:
        """Take in ``[1 + R, T, tile]``: the error, then R draws of the noise.

        Noise that is not finite is no measure of anything, and such a tile is left out; an error
        that is not finite is as large as can be.
        """
        gathered = self._all
        if not first:
            self._shift = deviations.mean(axis=-1, keepdims=True)
            self._squares = np.zeros(deviations.shape[1])
            gathered._rows += deviations.shape[1]
        squares = (deviations - self._shift) ** 2
        noise = squares[1:].mean(axis=0)
        every = float(noise.mean())
        if not np.isfinite(every):
            return
        by_position, by_token = noise.mean(axis=-1), noise.mean(axis=0)
        z = np.where(np.isnan(squares[0]), np.inf, squares[0])
        scale_T = np.maximum(by_position, every)[:, None]
        z = np.divide(z, scale_T, out=np.where(z > 0, np.inf, 0.0), where=scale_T > 0)
        self._squares += z.sum(axis=-1)
        self._elements += z.shape[-1]
        if every:
            z /= np.maximum(by_token / every, 1.0)
        here = slice(first, first + z.shape[-1])
        gathered._by_token[here] += z.sum(axis=0)
        at = np.unravel_index(int(np.argmax(z)), z.shape)
        size = float(np.sqrt(z[at]))
        if size > gathered._largest:
            gathered._largest = size
            gathered._index = (*self._index, self._position(int(at[0])), first + int(at[1]))

    def done(self) -> None:
        """All tiles were taken in."""
        if not self._elements:
            return
        t = int(np.argmax(self._squares))
        size = float(np.sqrt(self._squares[t] / self._elements))
        if size > self._all._position:
            self._all._position, self._all._at = size, (*self._index, self._position(t))

    def _position(self, row: int) -> int:
        return row if self._positions is None else self._positions[row]
