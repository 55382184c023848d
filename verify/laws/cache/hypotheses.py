"""What goes wrong with caches of keys and values, as ways in which the oracle can decode."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.decode import Before, right_positions, right_sources
from gpt_verify.laws.decoding import Way
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, Precision

Mask = NDArray[np.bool_]


def _kept(width: int) -> Way:
    def sources(before: Before, n: int) -> Mask:
        seen = right_sources(before, n)
        seen[:, : max(0, sum(before) - width)] = False
        return seen

    words = f"the cache keeps only its last {width} tokens"
    return Way(words, sources=sources, fault="cache-window")


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
    Way(
        "positions restart at every call",
        lambda before, n: np.arange(n),
        fault="cache-positions-restart",
    ),
    Way(
        "positions do not advance with the cache: every call after the first begins where the "
        "first one ended",
        lambda before, n: np.arange(n) + sum(before[:1]),
        fault="cache-positions-stuck",
    ),
    Way(
        "positions do not advance within a call",
        lambda before, n: np.full(n, sum(before)) if before else np.arange(n),
        fault="cache-position-of-call",
    ),
    Way(
        "positions count the calls, not the tokens",
        lambda before, n: np.arange(n) + len(before),
        fault="cache-positions-of-calls",
    ),
    Way(
        "positions after a cache are one too far",
        lambda before, n: np.arange(n) + sum(before) + bool(before),
        fault="cache-positions-ahead",
    ),
    Way(
        "positions after a cache are one short",
        lambda before, n: np.arange(n) + sum(before) - bool(before),
        fault="cache-positions-behind",
    ),
)

#: The first of them lose entries.
LOSSES = 4
SOURCES = (
    Way(
        "the oldest entry of the cache is lost at every call",
        sources=_without_oldest,
        fault="cache-oldest-lost",
    ),
    Way(
        "the first token is lost from the cache",
        sources=_without_first,
        fault="cache-first-token-lost",
    ),
    Way(
        "the newest entry of the cache is lost at every call",
        sources=_without_newest,
        fault="cache-newest-lost",
    ),
    Way(
        "the cache is not read: a call sees its own tokens only",
        sources=_own_tokens_only,
        fault="cache-not-read",
    ),
    Way(
        "the tokens of one call see each other's future: no causal mask where there is a cache",
        sources=_future_of_the_call,
        fault="cache-no-mask",
    ),
    Way(
        "the mask is aligned with the oldest cached token instead of the newest (is_causal with a "
        "cache)",
        sources=_upper_left,
        fault="cache-mask-upper-left",
    ),
)


def _rounded(precision: Precision, fault: str) -> Way:
    return Way(
        f"keys and values are kept in {precision.name}",
        kept=lambda kept: (precision.round(kept[0]), precision.round(kept[1])),
        fault=fault,
        quantising=True,
    )


#: What becomes of the numbers that are kept.
KEPT = (
    Way(
        "values are taken for keys and keys for values",
        kept=lambda kept: (kept[1], kept[0]),
        fault="cache-keys-as-values",
    ),
    _rounded(BFLOAT16, "cache-bfloat16"),
    _rounded(FLOAT16, "cache-float16"),
)


def ways(n_layer: int, tokens: int) -> list[Way]:
    """Every mistake, for sequences of so many tokens."""
    layers = []
    if n_layer > 1:
        layers = [
            Way(
                "every block reads the cache of the last one",
                layer=lambda _: n_layer - 1,
                fault="cache-of-last-block",
            ),
            Way(
                "every block reads the cache of the first one",
                layer=lambda _: 0,
                fault="cache-of-first-block",
            ),
        ]
    windows = map(window, range(1, tokens))
    # At the last call there are at most tokens - 1 in the cache.
    lost = [*SOURCES[:LOSSES], *map(_kept, range(1, tokens - 1))]
    counted = chain.from_iterable(map(_counted, lost))
    found = [*POSITIONS, *SOURCES, *layers, *KEPT, *lost[LOSSES:], *windows, *counted]
    return [*found, *map(_of_one_token, filter(_acts_on_one_token, (*POSITIONS, *SOURCES)))]


def _acts_on_one_token(way: Way) -> bool:
    """Whether a call of a single token shows it: what is wrong within a call does not."""
    for before in ((1,), (3,), (2, 1)):
        if (way.positions(before, 1) != right_positions(before, 1)).any():
            return True
        if (way.sources(before, 1) != right_sources(before, 1)).any():
            return True
    return False


def _of_one_token(way: Way) -> Way:
    """The same in a call of a single token alone: a path of its own in many ports."""

    def positions(before: Before, n: int) -> NDArray[np.integer]:
        return (way.positions if n == 1 else right_positions)(before, n)

    def sources(before: Before, n: int) -> Mask:
        return (way.sources if n == 1 else right_sources)(before, n)

    words = f"in a call of a single token {way.description}"
    return Way(words, positions, sources, fault=way.fault)


def _counted(way: Way) -> Iterator[Way]:
    """Positions that are counted in the cache, after this call's loss or before it."""

    def after(before: Before, n: int) -> NDArray[np.integer]:
        return np.arange(n) + int(way.sources(before, n)[0, : sum(before)].sum())

    def ahead(before: Before, n: int) -> NDArray[np.integer]:
        if not before:
            return np.arange(n)
        # What the last token of the call before could see is what that call left.
        return np.arange(n) + int(way.sources(before[:-1], before[-1])[-1].sum())

    words = f"{way.description}, and positions are counted in what is left of it"
    for positions in (after, ahead):
        yield Way(words, positions, way.sources, fault=way.fault)


def window(width: int) -> Way:
    """Not the cache but the mask is short."""

    def sources(before: Before, n: int) -> Mask:
        past = sum(before)
        distance = np.arange(past, past + n)[:, None] - np.arange(past + n)
        return (distance >= 0) & (distance < width)

    words = f"a token sees only the last {width}, itself included"
    return Way(words, sources=sources, fault="cache-window")


def last_clipped(n_ctx: int) -> Way:
    """The position table is thought to be one row shorter than it is."""
    return Way(
        "the last position of the context is decoded at the one before it",
        lambda before, n: np.minimum(np.arange(n) + sum(before), n_ctx - 2),
        fault="cache-last-position-clipped",
    )
