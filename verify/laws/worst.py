"""Where two tensors differ most, a tile at a time: none is held in float64 as a whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

#: Elements of one tile.
TILE = 1 << 20


class Worst:
    """The greatest difference so far.

    Attributes:
        unequal, size: how many elements differ in a bit, of how many.
    """

    def __init__(self) -> None:
        self.unequal = self.size = 0
        self._error = -1.0
        self._at: tuple[int, ...] = ()
        self._got = self._expected = 0.0

    def see(self, got: Array, expected: Array, first: int = 0) -> None:
        """Two tensors of one shape, whose first axis begins at ``first``."""
        rows = len(got) if got.ndim else 1
        step = max(1, TILE * rows // max(1, got.size))
        for start in range(0, rows, step):
            tile = slice(start, start + step) if got.ndim else ()
            self._tile(got[tile], expected[tile], first + start)

    def _tile(self, got: Array, expected: Array, first: int) -> None:
        unequal = (got != expected) | (np.signbit(got) != np.signbit(expected))
        self.size += got.size
        if not unequal.any():
            return
        self.unequal += int(np.count_nonzero(unequal))
        with np.errstate(invalid="ignore"):
            error = np.abs(got.astype(np.float64) - expected)
        error = np.where(unequal, np.where(np.isnan(error), np.inf, error), -1.0)
        at = np.unravel_index(int(np.argmax(error)), error.shape)
        if error[at] > self._error:
            self._error, self._got, self._expected = error[at], float(got[at]), float(expected[at])
            self._at = (int(at[0]) + first, *map(int, at[1:])) if at else ()

    def __str__(self) -> str:
        """In the grammar of all messages, to stand behind a name."""
        index = ", ".join(map(str, self._at))
        return f"[{index}] = {self._got:.9g}, should be {self._expected:.9g}"

    @property
    def count(self) -> str:
        """How much of it differs."""
        return f"{self.unequal} of {self.size} differ"
