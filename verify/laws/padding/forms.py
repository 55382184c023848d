"""What the numbers say of a padded batch where no fault of the catalogue fits.

Each is a way in which the oracle runs the batch: what padding counts for as a source, as a target
and as an embedding, which row's mask a head has, where positions are counted from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.decode import Before
from gpt_verify.laws.decoding import Way
from gpt_verify.laws.padding.hypotheses import Padded

Mask = NDArray[np.bool_]

#: Name → sentence that completes "the port …".
NAMES = {
    "padding-counts": "lets the padding of a batch count otherwise than it should",
    "padding-rows": "gives rows or heads the masks of other rows",
    "padding-positions": "counts positions beside padding in another way",
    "padding-positions-ignored": "does not use the positions that it is given",
    "padding-not-finite": "makes NaN or infinity of padding, and of what stands beside it",
}
#: About what is added to scores of masked sources where that is not enough to hide them. -1 is the
#: mask of zeros and ones, added to all, but for a number that softmax does not see.
WEAK = tuple(-(2.0**power) for power in range(8, -7, -1))


def forms(batch: Padded, n_head: int, n_layer: int) -> Iterator[Way]:
    """All of them, with positions as they should be, and as they are counted without a mask."""
    counted = np.broadcast_to(np.arange(batch.tokens.shape[1]), batch.tokens.shape).reshape(-1)
    for way in (*_counting(batch), *_of_rows(batch, n_head)):
        yield way
        words = f"{way.description}, and positions count the padding"
        yield replace(way, description=words, positions=lambda before, n: counted)
    yield from _positions(batch)
    if n_layer > 1:
        yield from _in_some_blocks(batch, n_layer)


def _own_row(batch: Padded) -> Mask:
    """[T, T] of the rows one after the other: the same row, and not later."""
    length, size = batch.tokens.shape[1], batch.tokens.size
    row = np.arange(size) // length
    seen: Mask = (row == row[:, None]) & np.tri(size, dtype=np.bool_)
    return seen


def _counting(batch: Padded) -> Iterator[Way]:
    """What padding counts for."""
    at, real = batch.positions.reshape(-1), batch.real.reshape(-1)
    causal, itself = _own_row(batch), np.eye(real.size, dtype=np.bool_)
    everything = Way("", lambda before, n: at, lambda before, n: causal, fault="padding-counts")
    right = replace(everything, sources=lambda before, n: causal & real | itself)
    yield replace(
        everything,
        description="padding is hidden as a target, and seen as a source",
        sources=lambda before, n: causal & real[:, None] | itself,
    )
    zeroed = real.astype(np.float64)
    yield replace(
        everything,
        description="the embeddings of padding are zeros, and it is seen",
        embedded=lambda before, n: zeroed,
    )
    yield replace(
        right,
        description="rows of padding see all of it, and real tokens see the last of it",
        sources=lambda before, n: causal & (real | np.roll(real, -1)) | itself,
    )
    mask = real.astype(np.float64)
    yield replace(
        everything,
        description="0 and 1 of the mask are added to the scores as they are",
        added=lambda before, n: mask,
    )
    yield replace(
        everything,
        description="the scores are multiplied by the mask, and padding is seen with a score of 0",
        sources=lambda before, n: causal,
        scaled=lambda before, n: mask,
    )


def _in_some_blocks(batch: Padded, n_layer: int) -> Iterator[Way]:
    """Padding is hidden in some blocks alone."""
    for some, words in (
        ({0}, "in the first block alone"),
        (set(range(n_layer - 1)), "in all blocks but the last"),
        (set(range(1, n_layer)), "in all blocks but the first"),
        ({n_layer - 1}, "in the last block alone"),
    ):
        yield replace(
            batch.right,
            description=f"padding is hidden {words}, and seen in the others",
            in_layer=some.__contains__,
            elsewhere=lambda before, n: _own_row(batch),
            fault="padding-counts",
        )


def weak(batch: Padded, number: float) -> Way:
    """Padding is hidden too little: its scores are this much lower."""
    at, real, causal = batch.positions.reshape(-1), batch.real.reshape(-1), _own_row(batch)
    return Way(
        f"{number:g} is added to the scores of padding, which does not hide it",
        lambda before, n: at,
        lambda before, n: causal,
        added=partial(_added, number * (1.0 - real.astype(np.float64))),
        fault="padding-counts",
    )


def _added(scores: NDArray[np.float64], before: Before, n: int) -> NDArray[np.float64]:
    return scores


def _of_rows(batch: Padded, n_head: int) -> Iterator[Way]:
    """The masks of other rows."""
    at, causal = batch.positions.reshape(-1), _own_row(batch)
    itself, rows = np.eye(at.size, dtype=np.bool_), len(batch.tokens)
    head, row = np.arange(n_head), np.arange(rows)
    orders = {
        "heads and rows are mixed up: head h of row b has the mask of row (b H + h) mod B": (
            row[None, :] * n_head + head[:, None]
        )
        % rows,
        "each row has the mask of the row before it": np.roll(row, 1)[None],
        "each row has the mask of the row after it": np.roll(row, -1)[None],
        "the last row's mask is used for all": np.full((1, rows), rows - 1),
    }
    for words, of_HB in orders.items():
        real_HT = batch.real[of_HB].reshape(len(of_HB), -1)
        seen = causal & real_HT[:, None, :] | itself
        yield Way(
            words,
            lambda before, n: at,
            lambda before, n, seen=seen: seen,  # type: ignore[misc]
            fault="padding-rows",
        )
    joint = np.broadcast_to(batch.real.all(axis=0), batch.real.shape).reshape(-1)
    words = "what is padding in any row is hidden in all"
    yield Way(
        words,
        lambda before, n: at,
        lambda before, n: causal & joint | itself,
        fault="padding-rows",
    )


def _positions(batch: Padded) -> Iterator[Way]:
    """Positions that neither count padding nor leave it out."""
    real, length = batch.real, batch.tokens.shape[1]
    at = np.arange(length)
    others = {
        "positions are counted from the end of the row": np.broadcast_to(at[::-1], real.shape),
        "all rows have the positions of the longest": np.broadcast_to(at, real.shape),
        "positions are those of the row before": np.roll(batch.positions, 1, axis=0),
        "positions are one short, and begin with 0 twice": np.maximum(batch.positions - 1, 0),
        "every real token has position 0": np.zeros_like(batch.positions),
    }
    for words, positions in others.items():
        yield batch.way(words, positions, fault="padding-positions")
