"""A port's gradient under the checkpoint's names, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from verify.matching import Matching, Placement
from verify.numerics.directions import WTE_READERS, Direction
from verify.ports.port import Floats, Gradients

#: What the parts of c_attn are called when one of them gets no gradient.
_WORDS = ("query", "key", "value")


class PortGradient:
    """⟨gradient, v⟩ of each tensor, from the parameters that were matched to it.

    Args:
        gradients: as the port gave them.
        matching: which parameter is which tensor, or which part of one, and how it lies.
    """

    def __init__(self, gradients: Gradients, matching: Matching) -> None:
        self._gradients, self._placements = gradients, matching.placements
        self._tied = not any(p.tensor == "lm_head" for p in matching.placements)

    @property
    def tells_ends_apart(self) -> bool:
        """Whether what comes through the lookup of wte is known apart from the last product's."""
        return self._gradients.wte_input is not None and self._gradients.wte_output is not None

    def along(self, direction: Direction) -> float | None:
        """⟨gradient, v⟩ in float64; None where the port has no parameter for all of it."""
        pieces = list(self._pieces(direction))
        if not pieces or sum(p.direction.right.size for p in pieces) % direction.right.size:
            return None
        return sum(p.direction.along(p.value) for p in pieces)

    def idle(self, direction: Direction) -> tuple[str, ...]:
        """What gets no gradient at all: the tensor itself, or parts of c_attn (``key``)."""
        pieces = [third for piece in self._pieces(direction) for third in piece.thirds()]
        none = [piece for piece in pieces if not piece.value.any()]
        if len(none) == len(pieces):
            return (direction.tensor,) if pieces else ()
        return tuple(_WORDS[piece.part] for piece in none if piece.part is not None)

    def _pieces(self, direction: Direction) -> Iterator[_Piece]:
        if direction.tensor == "wte" and self._tied and direction.sites != WTE_READERS:
            lookup = direction.sites[0] == WTE_READERS[0]
            value = self._gradients.wte_input if lookup else self._gradients.wte_output
            if value is not None:
                yield _Piece(direction, value)
            return
        for placement in self._placements:
            if placement.tensor == direction.tensor:
                part, piece = placement.part, direction
                if part is not None:
                    piece = replace(direction, right=np.split(direction.right, 3)[part])
                yield _Piece(piece, self._value(placement, piece), part)

    def _value(self, placement: Placement, piece: Direction) -> Floats:
        shape = (piece.right.size,) if piece.left is None else (piece.left.size, piece.right.size)
        value = self._gradients.parameters.get(placement.parameter)
        if value is None:
            return np.zeros(shape, np.float32)
        return placement.layout.upright(value).reshape(shape)


@dataclass(frozen=True)
class _Piece:
    """What one parameter has of a tensor.

    Attributes:
        direction: as much of v.
        value: the gradient, in the same shape.
        part: 0, 1 or 2 where it is the query, key or value part of c_attn.
    """

    direction: Direction
    value: Floats
    part: int | None = None

    def thirds(self) -> list[_Piece]:
        """A whole c_attn as its three parts; anything else as it is."""
        if self.part is not None or "/c_attn/" not in self.direction.tensor:
            return [self]
        rights = np.split(self.direction.right, 3)
        values = np.split(self.value, 3, axis=-1)
        return [
            _Piece(replace(self.direction, right=right), value, part)
            for part, (right, value) in enumerate(zip(rights, values, strict=True))
        ]
