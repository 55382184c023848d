"""The directions in which the derivatives of a tensor are taken.

Every element is +1 or -1, so that each counts alike in ⟨gradient, v⟩, and a matrix is the outer
product of two vectors of signs: it takes the memory of in + out numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from reference.weights import tensor_table
from verify.numerics.local import vocabulary_tiles
from verify.sites import sites

Array = NDArray[Any]

#: The two operations that read wte.
WTE_READERS = ("embed", "logits")


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction of one tensor: ±1 for each element, left ⊗ right.

    Attributes:
        tensor: the checkpoint's name.
        sites: the operations for which it moves: its reader, or for ``wte`` one of two or both.
        left: signs of the rows, float64[in]; None for a vector.
        right: signs of the columns, float64[out].
    """

    tensor: str
    sites: tuple[str, ...]
    left: Array | None
    right: Array

    @property
    def size(self) -> int:
        """Number of elements, which is also ‖v‖²."""
        return len(self.right) * (1 if self.left is None else len(self.left))

    def rows(self, which: slice | Array = slice(None)) -> Array:
        """Signs of these rows of a matrix."""
        assert self.left is not None, f"{self.tensor} is a vector"
        return self.left[which]

    def values(self) -> NDArray[np.float64]:
        """The direction itself, in the checkpoint's shape."""
        return self.right.copy() if self.left is None else np.outer(self.left, self.right)

    def along(self, gradient: Array) -> float:
        """⟨gradient, v⟩ in float64, tile by tile; the gradient has the checkpoint's shape."""
        with np.errstate(invalid="ignore"):  # of what is not finite, the sum is not either
            if self.left is None:
                return float(gradient.astype(np.float64) @ self.right)
            total = 0.0
            for rows in vocabulary_tiles(gradient.shape[1], gradient.shape[0]):
                total += float(self.left[rows] @ (gradient[rows].astype(np.float64) @ self.right))
            return total


def draw(config: Config, rng: np.random.Generator) -> list[Direction]:
    """One direction of each tensor, in the order in which the forward pass reads them; ``wte`` has
    three with the same signs: as the lookup sees it, as the last product does, and as both do."""
    reader = {tensor: site.name for site in sites(config).values() for tensor in site.weights}
    drawn = []
    for spec in tensor_table(config).values():
        *left, right = (rng.choice([-1.0, 1.0], n) for n in spec.shape)
        first, last = WTE_READERS
        ends = [(first,), (last,), WTE_READERS] if spec.name == "wte" else [(reader[spec.name],)]
        drawn += [Direction(spec.name, at, left[0] if left else None, right) for at in ends]
    return drawn
