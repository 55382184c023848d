"""How much of a large result is made at a time."""

from __future__ import annotations

from collections.abc import Iterator

#: Tokens × vocabulary elements handled at a time: 2 MB in float64, which a core's cache holds.
TILE_ELEMENTS = 1 << 18
#: Elements of scores or of a pattern handled at a time: 8 MB in float64. Larger arrays are taken
#: from the system and given back each time, which costs more than what is computed with them.
HEAD_ELEMENTS = 1 << 20
#: Elements of the rows of a table that are widened at a time.
TABLE_ELEMENTS = 1 << 20
#: All heads. Some of them at a time are as good, since heads know nothing of each other.
EVERY = slice(None)


def vocabulary_tiles(tokens: int, n_vocab: int, width: int = 1) -> Iterator[slice]:
    """Slices of the vocabulary, each small enough for a tile of logits, and for its rows of the
    table, which are so wide."""
    step = max(1, min(TILE_ELEMENTS // max(tokens, 1), TABLE_ELEMENTS // width))
    for start in range(0, n_vocab, step):
        yield slice(start, min(start + step, n_vocab))


def head_tiles(n_head: int, tokens: int) -> list[slice]:
    """Slices of the heads, each with as many patterns as are handled at a time."""
    step = max(1, HEAD_ELEMENTS // tokens**2)
    return [slice(first, min(first + step, n_head)) for first in range(0, n_head, step)]
