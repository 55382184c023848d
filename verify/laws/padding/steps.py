"""Padded batches that are decoded with a cache, and what goes wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.decode import Before
from gpt_verify.laws.decoding import Way
from gpt_verify.laws.padding.hypotheses import Padded

Tokens = NDArray[np.int64]
Mask = NDArray[np.bool_]
Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The tokens of all calls so far in the order in which they were handed over, [N] each.

    Attributes:
        row, column: of the batch.
        call: which call each was handed over in.
        begins: the column at which that call begins.
    """

    row: Tokens
    column: Tokens
    call: Tokens
    begins: Tokens

    @classmethod
    def of(cls, rows: int, lengths: Lengths) -> Layout:
        """Of so many rows, decoded in pieces of these lengths."""
        parts, start = [], 0
        for call, length in enumerate(lengths):
            columns = np.arange(start, start + length)
            row, column = (
                x.reshape(-1) for x in np.meshgrid(np.arange(rows), columns, indexing="ij")
            )
            parts.append((row, column, np.full(row.size, call), np.full(row.size, start)))
            start += length
        return cls(*(np.concatenate(x) for x in zip(*parts, strict=True)))


#: The batch and a layout → where its tokens are, int[N]; or whether the last n of them see each of
#: the sources before the rest of the rules (causality, its own row) is applied, bool[n, N].
Positions = Callable[[Padded, Layout], Tokens]
Seen = Callable[[Padded, Layout, int], Mask]


def right_at(batch: Padded, layout: Layout) -> Tokens:
    at: Tokens = batch.positions[layout.row, layout.column]
    return at


def right_seen(batch: Padded, layout: Layout, n: int) -> Mask:
    real: Mask = batch.real[layout.row, layout.column]
    return np.broadcast_to(real, (n, real.size))


def stepped(
    batch: Padded,
    words: str = "",
    at: Positions = right_at,
    seen: Seen = right_seen,
    fault: str = "",
) -> Way:
    """The batch, decoded in any pieces, as one sequence of which each row sees itself alone."""
    rows = len(batch.tokens)

    def layout_of(before: Before, n: int) -> Layout:
        return Layout.of(rows, tuple(length // rows for length in (*before, n)))

    def positions(before: Before, n: int) -> Tokens:
        return at(batch, layout_of(before, n))[-n:]

    def sources(before: Before, n: int) -> Mask:
        layout = layout_of(before, n)
        row, column = layout.row, layout.column
        own = (row == row[-n:, None]) & (column <= column[-n:, None])
        itself = own & (column == column[-n:, None])
        return np.asarray((own & seen(batch, layout, n)) | itself)

    return Way(words, positions, sources, fault=fault)


def _by_length(batch: Padded, layout: Layout) -> Tokens:
    """The length of the cache, padding included, where there is a cache."""
    return np.where(layout.call > 0, layout.column, right_at(batch, layout))


def _shifted(by: int) -> Positions:
    def at(batch: Padded, layout: Layout) -> Tokens:
        return np.maximum(right_at(batch, layout) + by * (layout.call > 0), 0)

    return at


def _of_the_call(batch: Padded, layout: Layout) -> Tokens:
    """Counted in the mask of the call alone."""
    before = np.concatenate(
        [np.zeros((len(batch.mask), 1), np.int64), batch.mask.cumsum(axis=1)], 1
    )
    at: Tokens = right_at(batch, layout) - before[layout.row, layout.begins]
    return np.maximum(at, 0)


def _counted(batch: Padded, layout: Layout) -> Tokens:
    return layout.column


def _cached_seen(batch: Padded, layout: Layout, n: int) -> Mask:
    """What is in the cache is seen, whatever it is; the first call is right."""
    if not layout.call[-1]:
        return right_seen(batch, layout, n)
    seen: Mask = right_seen(batch, layout, n) | (layout.call < layout.call[-1])
    return seen


def _of_first_row(batch: Padded, layout: Layout, n: int) -> Mask:
    if not layout.call[-1]:
        return right_seen(batch, layout, n)
    real: Mask = batch.real[0][layout.column]
    return np.broadcast_to(real, (n, real.size))


#: Fault → what is left of it where positions are handed over with each call.
WITH_POSITIONS = {"padding-cache-ignored": "padding-cache-attended"}


def ways_of_steps(batch: Padded) -> Iterator[Way]:
    """Every mistake that can be made with this batch and a cache."""
    counted = "positions after a cache are its length, padding included"
    seen = "padding in the cache is attended to"
    yield stepped(batch, counted, _by_length, fault="padding-cache-positions")
    yield stepped(batch, seen, seen=_cached_seen, fault="padding-cache-attended")
    yield stepped(
        batch, f"{counted}, and {seen}", _by_length, _cached_seen, "padding-cache-ignored"
    )
    yield stepped(batch, "positions count the padding, with a cache and without", _counted)
    yield stepped(batch, "positions are counted in the mask of the call alone", _of_the_call)
    yield stepped(batch, "positions after a cache are one too far", _shifted(1))
    yield stepped(batch, "positions after a cache are one short", _shifted(-1))
    yield stepped(
        batch, "with a cache the mask of the first row is used for all", seen=_of_first_row
    )
