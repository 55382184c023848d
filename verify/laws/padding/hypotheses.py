"""Padded batches, and what goes wrong with them, as ways in which the oracle can run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpt_verify.laws.decoding import Way

Tokens = NDArray[np.int64]

#: The known trap: not an incorrect computation, but a wrong use of a port that finds no positions.
COUNTED = "positions count the padding"


@dataclass(frozen=True)
class Padded:
    """Sequences that are padded, on the left or anywhere else.

    Attributes:
        tokens: int[B, T].
        mask: int[B, T], 1 real, 0 padding.
    """

    tokens: Tokens
    mask: Tokens

    @cached_property
    def positions(self) -> Tokens:
        """Of each token in its own sequence, int[B, T]; 0 at padding."""
        return np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)

    @cached_property
    def real(self) -> NDArray[np.bool_]:
        return self.mask.astype(np.bool_)

    @property
    def sequences(self) -> list[Tokens]:
        """What is no padding, row by row."""
        return [row[real] for row, real in zip(self.tokens, self.real, strict=True)]

    @property
    def right(self) -> Way:
        return self.way("")

    def way(
        self,
        words: str,
        positions: Tokens | None = None,
        mask: NDArray[np.integer | np.bool_] | None = None,
        causal: bool = True,
        fault: str = "",
        added: NDArray[np.floating] | None = None,
    ) -> Way:
        """The batch laid out as one sequence, in which each row sees itself alone.

        Args:
            positions, mask: int[B, T], in place of the correct ones.
            causal: a token does not see later ones.
            fault: its name in the catalogue of faults.
            added: to the scores of these sources, float[B, T].
        """
        length = self.tokens.shape[1]
        at = (self.positions if positions is None else positions).reshape(-1)
        real = np.asarray(self.mask if mask is None else mask, np.bool_).reshape(-1)
        row = np.arange(real.size) // length
        seen = (row == row[:, None]) & real
        if causal:
            seen &= np.tri(real.size, dtype=np.bool_)
        seen |= np.eye(real.size, dtype=np.bool_)  # what sees nothing else sees itself
        made = Way(words, lambda before, n: at, lambda before, n: seen, fault=fault)
        if added is None:
            return made
        added_1N = added.reshape(1, -1)
        return replace(made, added=lambda before, n: added_1N)


def counted(batch: Padded) -> Tokens:
    """Positions from the left, padding included."""
    shape = batch.tokens.shape
    at: Tokens = np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape)
    return at


def from_first(batch: Padded) -> Tokens:
    """Positions from the first token that is no padding, whatever is masked after it."""
    at: Tokens = np.maximum(counted(batch) - batch.mask.argmax(axis=1)[:, None], 0)
    return at


def of_count(batch: Padded) -> Tokens:
    """The mask of as many tokens, were all padding on the left."""
    width = batch.mask.shape[1]
    of: Tokens = (np.arange(width) >= width - batch.mask.sum(axis=1)[:, None]).astype(np.int64)
    return of


def ways_of_shapes(batch: Padded) -> list[Way]:
    """What goes wrong with a mask that is none of padding on the left."""
    left = of_count(batch)
    at = np.maximum(np.cumsum(left, axis=1) - 1, 0)
    words = "the mask is reduced to a count, and padding is taken to be on the left"
    fault = "padding-mask-count"
    return [
        batch.way(words, mask=left, fault=fault),
        batch.way(words, at, left, fault=fault),
        batch.way(
            "positions are counted as if all padding were on the left",
            at,
            fault="padding-positions-count",
        ),
        batch.way(
            "only what is before the first real token is masked",
            mask=np.maximum.accumulate(batch.mask, axis=1),
            fault="padding-between-seen",
        ),
        *ways(batch),
    ]


def ways(batch: Padded) -> list[Way]:
    """Every mistake that can be made with this batch."""
    shape, mask = batch.tokens.shape, batch.mask
    every = counted(batch)
    everything = np.ones(shape, np.bool_)
    first_mask = np.broadcast_to(mask[0], shape)
    first_at = np.broadcast_to(batch.positions[0], shape)
    late, early = np.roll(mask, 1, axis=1), np.roll(mask, -1, axis=1)
    late[:, 0], early[:, -1] = mask[:, 0], 1
    return [
        batch.way(COUNTED, every, fault="padding-positions-counted"),
        batch.way(
            "the mask is ignored: padding is attended to",
            mask=everything,
            fault="padding-attended",
        ),
        batch.way("mask and positions are ignored", every, everything),
        batch.way(
            "the mask of the first row is used for all",
            mask=first_mask,
            fault="padding-mask-of-first-row",
        ),
        batch.way(
            "the positions of the first row are used for all",
            first_at,
            fault="padding-positions-of-first-row",
        ),
        batch.way("mask and positions of the first row are used for all", first_at, first_mask),
        batch.way(
            "the mask is taken the wrong way round: 1 for padding",
            mask=1 - mask,
            fault="padding-mask-inverted",
        ),
        batch.way(
            "the mask is taken for one of padding on the right",
            mask=mask[:, ::-1],
            fault="padding-mask-mirrored",
        ),
        batch.way(
            "the mask is one token late: the first real token is masked",
            mask=late,
            fault="padding-mask-late",
        ),
        batch.way(
            "the mask is one token early: the last padding is attended to",
            mask=early,
            fault="padding-mask-early",
        ),
        batch.way(
            "no causal mask where there is a mask of padding",
            causal=False,
            fault="padding-no-causal-mask",
        ),
        batch.way(
            "the mask of zeros and ones is added to the scores as it is",
            mask=everything,
            added=mask.astype(np.float64),
            fault="padding-mask-added",
        ),
        batch.way(
            "positions begin at 1 after padding",
            np.cumsum(mask, axis=1),
            fault="padding-positions-from-1",
        ),
    ]
