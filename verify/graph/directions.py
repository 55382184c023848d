"""The directions in which the derivatives of a tensor are taken.

The direction of a matrix is an outer product, which takes the memory of in + out numbers. Signs are
random, and sizes between 1/2 and 1: each element counts nearly alike in ⟨gradient, v⟩, and no
direction is one along which nothing changes (all channels alike, which a layer norm removes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.tiles import vocabulary_tiles
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table
from gpt_verify.sites import readers

Array = NDArray[Any]

#: The two operations that read wte, where it is the head as well.
WTE_READERS = ("embed", "logits")


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction of one tensor: left ⊗ right, or right alone.

    Attributes:
        tensor: the checkpoint's name.
        sites: the operations for which it moves: its reader, or for ``wte`` one of two or both.
        left: factors of the rows, float64[in]; None for a vector.
        right: factors of the columns, float64[out].
    """

    tensor: str
    sites: tuple[str, ...]
    left: Array | None
    right: Array

    @property
    def square(self) -> float:
        """‖v‖²."""
        return float(np.sum(self.right**2) * (1 if self.left is None else np.sum(self.left**2)))

    def rows(self, which: slice | Array = slice(None)) -> Array:
        """Factors of these rows of a matrix."""
        assert self.left is not None, f"{self.tensor} is a vector"
        return self.left[which]

    def values(self) -> NDArray[np.float64]:
        """The direction itself, in the checkpoint's shape."""
        return self.right.copy() if self.left is None else np.outer(self.left, self.right)

    def along(self, gradient: Array) -> float:
        """⟨gradient, v⟩ in float64, tile by tile; the gradient has the checkpoint's shape."""
        with np.errstate(invalid="ignore"):  # of what is not finite, the sum is not either
            if self.left is None:
                return float(gradient.astype(np.float64, copy=False) @ self.right)
            total = 0.0
            for rows in vocabulary_tiles(gradient.shape[1], gradient.shape[0]):
                tile = gradient[rows].astype(np.float64, copy=False)
                total += float(self.left[rows] @ (tile @ self.right))
            return total


def draw(config: Config, rng: np.random.Generator) -> list[Direction]:
    """One direction of each tensor, in the order in which the forward pass reads them; a tied
    ``wte`` has three that are the same: as the lookup sees it, as the last product does, both."""
    read_by = readers(config)
    drawn = []
    for spec in tensor_table(config).values():
        at = tuple(site.name for site in read_by[spec.name])
        *left, right = (rng.choice([-1, 1], n) * rng.uniform(0.5, 1, n) for n in spec.shape)
        ends = [(at[0],), (at[1],), at] if at == WTE_READERS else [at]
        drawn += [Direction(spec.name, end, left[0] if left else None, right) for end in ends]
    return drawn
