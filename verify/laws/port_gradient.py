"""A port's gradient under the checkpoint's names, whatever its layout: along directions, as it
arrives, so that no gradient is held whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt_verify.graph.directions import WTE_READERS, Direction
from gpt_verify.matching.match import Matching, Placement
from gpt_verify.port import GRADIENTS, End, Floats, Port, Tokens
from gpt_verify.reference.weights import split_qkv

#: What the parts of c_attn are called when one of them gets no gradient.
_WORDS = ("query", "key", "value")
_ENDS = {"embed": End.LOOKUP, "logits": End.HEAD}


@dataclass(frozen=True)
class _Piece:
    """What one parameter, or one end of wte, has of a tensor.

    Attributes:
        where: the parameter's name, or the end.
        direction: as much of v.
        placement: how the parameter lies; None of an end.
        part: 0, 1 or 2 where it is the query, key or value part of c_attn.
    """

    where: str | End
    direction: Direction
    placement: Placement | None = None
    part: int | None = None

    def to_checkpoint_layout(self, value: Floats) -> Floats:
        """The derivative in the checkpoint's layout."""
        left, right = self.direction.left, self.direction.right
        shape = (right.size,) if left is None else (left.size, right.size)
        if self.placement is None:
            return value
        return self.placement.layout.to_checkpoint_layout(value).reshape(shape)

    def parts(self) -> tuple[int | None, ...]:
        """A whole c_attn has three; anything else is one."""
        if self.part is None and "/c_attn/" in self.direction.tensor:
            return (0, 1, 2)
        return (self.part,)


class PortGradient:
    """A ``GradientSink`` that keeps ⟨gradient, v⟩ of each direction, how large the gradient is at
    most, and what got none at all.

    Args:
        matching: which parameter is which tensor, or which part of one, and how it lies.
        directions: all that will be asked for.
    """

    def __init__(self, matching: Matching, directions: Sequence[Direction]) -> None:
        self._placements = matching.placements
        self._tied = not any(p.tensor == "lm_head" for p in matching.placements)
        self._pieces = {id(d): list(self._pieces_of(d)) for d in directions}
        self._directions = list(directions)  # kept, or their identities would change
        self._by_where: dict[str | End, list[tuple[int, _Piece]]] = {}
        for key, pieces in self._pieces.items():
            for piece in pieces:
                self._by_where.setdefault(piece.where, []).append((key, piece))
        self.tells_ends_apart = False
        self.restart()

    @classmethod
    def of(
        cls, port: Port, matching: Matching, directions: Sequence[Direction], tokens: Tokens
    ) -> PortGradient:
        """Of the mean loss of a batch, int[B, T]; for the two ends of wte, also of their sum.

        Raises:
            NotExamined: the port shows no gradients.
        """
        found, gradients = cls(matching, directions), port.offers()[GRADIENTS]
        found.tells_ends_apart = gradients(tokens, found)
        return found

    def restart(self) -> None:
        self._sums = dict.fromkeys(self._pieces, 0.0)
        self._largest = dict.fromkeys(self._pieces, 0.0)
        self._moving: set[tuple[int, int | None]] = set()
        #: What got anything, zeros included.
        self.seen: set[str | End] = set()

    def add(self, where: str | End, value: Floats) -> None:
        self.seen.add(where)
        in_checkpoint_layout: dict[int, Floats] = {}
        for key, piece in self._by_where.get(where, ()):
            laid = id(piece.placement)
            if laid not in in_checkpoint_layout:
                in_checkpoint_layout[laid] = piece.to_checkpoint_layout(value)
            self._sums[key] += piece.direction.along(in_checkpoint_layout[laid])
            low, high = np.min(value, initial=0.0), np.max(value, initial=0.0)
            self._largest[key] = max(self._largest[key], float(high), -float(low))
            parts = piece.parts()
            for part, third in zip(
                parts, np.split(in_checkpoint_layout[laid], len(parts), -1), strict=True
            ):
                if (key, part) not in self._moving and third.any():
                    self._moving.add((key, part))

    def along(self, direction: Direction) -> float | None:
        """⟨gradient, v⟩ in float64; None where the port has no parameter for all of it."""
        pieces = self._pieces[id(direction)]
        if isinstance(next((p.where for p in pieces), None), End) and not self.tells_ends_apart:
            return None
        if not pieces or sum(p.direction.right.size for p in pieces) % direction.right.size:
            return None
        return self._sums[id(direction)]

    def largest(self, direction: Direction) -> float:
        """The largest size of an element of the gradient."""
        return self._largest[id(direction)]

    def idle(self, direction: Direction) -> tuple[str, ...]:
        """What gets no gradient at all: the tensor itself, or parts of c_attn (``key``)."""
        key, pieces = id(direction), self._pieces[id(direction)]
        parts = [part for piece in pieces for part in piece.parts()]
        none = [part for part in parts if (key, part) not in self._moving]
        if len(none) == len(parts):
            return (direction.tensor,) if parts else ()
        return tuple(_WORDS[part] for part in none if part is not None)

    def _pieces_of(self, direction: Direction) -> Iterator[_Piece]:
        if direction.tensor == "wte" and self._tied and direction.sites != WTE_READERS:
            yield _Piece(_ENDS[direction.sites[0]], direction)
            return
        for placement in self._placements:
            if placement.tensor == direction.tensor:
                part, piece = placement.part, direction
                if part is not None:
                    piece = replace(direction, right=split_qkv(direction.right)[part])
                yield _Piece(placement.parameter, piece, placement, part)
