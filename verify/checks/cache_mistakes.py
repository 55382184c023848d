"""What goes wrong with caches of keys and values, as ways in which the oracle can decode."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from verify.checks.decoding import Before, Way, right_sources

Mask = NDArray[np.bool_]


def _kept(width: int) -> Way:
    def sources(before: Before, n: int) -> Mask:
        seen = right_sources(before, n)
        seen[:, : max(0, sum(before) - width)] = False
        return seen

    return Way(f"the cache keeps only its last {width} tokens", sources=sources)


def _without_oldest(before: Before, n: int) -> Mask:
    """One entry is lost at every call after the first."""
    seen = right_sources(before, n)
    seen[:, : len(before)] = False
    return seen


def _without_first(before: Before, n: int) -> Mask:
    seen = right_sources(before, n)
    seen[:, : min(1, len(before))] = False
    return seen


def _without_newest(before: Before, n: int) -> Mask:
    """The last entry of every earlier call has been overwritten by the call after it."""
    seen = right_sources(before, n)
    seen[:, np.cumsum(before, dtype=np.int64) - 1] = False
    return seen


def _own_tokens_only(before: Before, n: int) -> Mask:
    seen = right_sources(before, n)
    seen[:, : sum(before)] = False
    return seen


def _future_of_the_call(before: Before, n: int) -> Mask:
    return np.ones((n, sum(before) + n), np.bool_) if before else right_sources(before, n)


def _upper_left(before: Before, n: int) -> Mask:
    return np.tri(n, sum(before) + n, dtype=np.bool_)


POSITIONS = (
    Way("positions restart at every call", lambda before, n: np.arange(n)),
    Way(
        "positions do not advance with the cache: every call after the first begins where the "
        "first one ended",
        lambda before, n: np.arange(n) + sum(before[:1]),
    ),
    Way(
        "positions do not advance within a call",
        lambda before, n: np.full(n, sum(before)) if before else np.arange(n),
    ),
    Way(
        "positions count the calls, not the tokens",
        lambda before, n: np.arange(n) + len(before),
    ),
    Way(
        "positions after a cache are one too far",
        lambda before, n: np.arange(n) + sum(before) + bool(before),
    ),
    Way(
        "positions after a cache are one short",
        lambda before, n: np.arange(n) + sum(before) - bool(before),
    ),
)

#: The first of them lose entries.
LOSSES = 4
SOURCES = (
    Way("the oldest entry of the cache is lost at every call", sources=_without_oldest),
    Way("the first token is lost from the cache", sources=_without_first),
    Way("the newest entry of the cache is lost at every call", sources=_without_newest),
    Way("the cache is not read: a call sees its own tokens only", sources=_own_tokens_only),
    Way(
        "the tokens of one call see each other's future: no causal mask where there is a cache",
        sources=_future_of_the_call,
    ),
    Way(
        "the mask is aligned with the oldest cached token instead of the newest (is_causal with a "
        "cache)",
        sources=_upper_left,
    ),
)


def ways(n_layer: int, tokens: int) -> list[Way]:
    """Every mistake, for sequences of so many tokens."""
    layers = []
    if n_layer > 1:
        layers = [
            Way("every block reads the cache of the last one", layer=lambda _: n_layer - 1),
            Way("every block reads the cache of the first one", layer=lambda _: 0),
        ]
    windows = map(window, range(1, tokens))
    # At the last call there are at most tokens - 1 in the cache.
    lost = [*SOURCES[:LOSSES], *map(_kept, range(1, tokens - 1))]
    counted = chain.from_iterable(map(_counted, lost))
    return [*POSITIONS, *SOURCES, *layers, *lost[LOSSES:], *windows, *counted]


def _counted(way: Way) -> Iterator[Way]:
    """Positions that are counted in the cache, after this call's loss or before it."""

    def after(before: Before, n: int) -> NDArray[np.integer]:
        return np.arange(n) + int(way.sources(before, n)[0, : sum(before)].sum())

    def ahead(before: Before, n: int) -> NDArray[np.integer]:
        if not before:
            return np.arange(n)
        # What the last token of the call before could see is what that call left.
        return np.arange(n) + int(way.sources(before[:-1], before[-1])[-1].sum())

    words = f"{way.words}, and positions are counted in what is left of it"
    for positions in (after, ahead):
        yield Way(words, positions, way.sources)


def window(width: int) -> Way:
    """Not the cache but the mask is short."""

    def sources(before: Before, n: int) -> Mask:
        past = sum(before)
        distance = np.arange(past, past + n)[:, None] - np.arange(past + n)
        return (distance >= 0) & (distance < width)

    return Way(f"a token sees only the last {width}, itself included", sources=sources)
