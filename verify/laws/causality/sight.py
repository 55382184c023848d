"""Which position sees which later one, and what that looks like.

The same words for all three laws of causality, whatever the evidence is: a position whose logits
change with a later token, a weight above the diagonal, a derivative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]

#: The smallest tile that is called one.
SMALLEST_TILE = 2


@dataclass(frozen=True)
class Sight:
    """What is known of who sees whom.

    Attributes:
        sees: bool[T, S], position t sees position s. Only s > t is looked at.
        tried: bool[T, S], the pairs of which that is known.
        layers: through how many layers it sees.
    """

    sees: Bools
    tried: Bools
    layers: int

    def describe(self) -> str:
        """The earliest leak, and the rule that all of them follow, if there is one."""
        tried = np.triu(self.tried, 1)
        sees = self.sees & tried
        if not sees.any():
            return ""
        target = int(np.argmax(sees.any(axis=1)))
        source = int(np.argmax(sees[target]))
        first = f"position {target} sees position {source}"
        rule = _rule(sees, tried, self.layers)
        return f"{first}, {rule}" if rule else first


def _rule(sees: Bools, tried: Bools, layers: int) -> str:
    """What tells the pairs that see from those that do not, and what it reminds of: a norm over the
    sequence leaks as a missing mask does."""
    targets, sources = np.nonzero(sees)
    ahead = int((sources - targets).max())
    if int(tried.sum()) == 1:
        return ""
    if np.array_equal(sees, tried):
        return "and every position every later one that was tried, as without a mask"
    rows, columns = np.indices(sees.shape)
    if np.array_equal(sees, tried & (columns - rows <= ahead)):
        off = "one" if ahead == 1 else str(ahead)
        off += f", or by one in {ahead} layers" if 1 < ahead <= layers else ""
        return f"and every position {ahead} ahead, none further, as with a mask off by {off}"
    if size := _tile(sees, tried):
        return f"and every position the rest of its tile of {size}, as where that is not masked"
    if len(set(sources)) == 1 and len(targets) > 1:
        return f"which {len(targets)} positions see, and no other later one"
    last, nearest = int(targets.max()), int(sources.min())
    if last + 1 == nearest and (nearest & (nearest - 1)) == 0 and nearest >= 8:
        return f"only across the boundary at {nearest}, up to {ahead} ahead, as by a tile"
    return f"at most {ahead} ahead; {len(targets)} of {int(tried.sum())} pairs that were tried see"


def _tile(sees: Bools, tried: Bools) -> int | None:
    """Size of the tiles inside which everything is seen, and outside of which nothing is."""
    rows, columns = np.indices(sees.shape)
    size = SMALLEST_TILE
    while size < len(sees):
        if np.array_equal(sees, tried & (rows // size == columns // size)):
            return size
        size *= 2
    return None
