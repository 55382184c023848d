"""What the numbers say of a cache where no fault of the catalogue fits: which slots, seen by whom.

Each is a family of ways in which the oracle decodes, of which one must give all of the port's
logits: slots that hold zeros, slots that nobody has filled, tokens that a call does not see,
numbers that were rounded on their way, each in all blocks or in one of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.decode import Before, KeysValues, joined, right_sources
from gpt_verify.laws.cache.positions_used import NAME as POSITIONS
from gpt_verify.laws.cache.positions_used import SUMMARY as OF_POSITIONS
from gpt_verify.laws.decoding import Way
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16
from gpt_verify.reference import ops

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

#: Name → sentence that completes "the port …".
NAMES = {
    "cache-slots": "reads other slots of its cache than it has filled",
    "cache-sight": "lets a call with a cache see other tokens",
    "cache-rounded": "keeps keys and values in another format",
    "cache-without-bias": "caches keys or values without their bias",
    "cache-layout": "reads the memory of its cache in another layout than it has",
    "cache-tiles": "puts the parts of a softmax over its cache together wrongly",
    "cache-clipped": "clips keys or values to what the cache holds already",
    "cache-rows": "reads the cache of another row",
    POSITIONS: OF_POSITIONS,
}
#: What is kept, and its places in the pair of keys and values.
WHICH = (("keys and values", (0, 1)), ("keys", (0,)), ("values", (1,)))
#: Slots, steps back and unfilled slots that are tried.
SLOTS, BACK, EMPTY, MULTIPLES = 4, 4, 9, (4, 8, 16, 32, 64, 128)
#: Slots of a page, and pages that are tried one by one.
PAGES, FEW = (4, 8, 16, 32), 4
#: Sources of a tile.
TILES = (4, 8, 16, 32, 64, 128, 256)
#: Blocks that are tried one by one, beside the last.
BLOCKS = 12


def forms(n_layer: int, n_ctx: int) -> Iterator[Way]:
    """All of them, those of all blocks first; these alone where one layer is asked for."""
    yield from (*_unfilled(n_ctx), *_zeros(), *_unseen(), *_unbiased(), *_pages(n_ctx), *_rounded())
    yield from (*_layouts(), *_clipped(), *_tiles(n_ctx))
    if n_layer > 1:
        for layer in dict.fromkeys((*range(min(n_layer, BLOCKS)), n_layer - 1)):
            for way in _in_one_block():
                words = f"in block {layer} alone, {way.description}"
                yield replace(way, description=words, in_layer=partial(_is, layer))


def _is(layer: int, other: int) -> bool:
    return layer == other


def _zeros() -> Iterator[Way]:
    """Slots that are zeros when the next call reads them."""
    for which, of in WHICH:
        for n in range(1, SLOTS + 1):
            slots = "slot 0 holds" if n == 1 else f"slots 0 … {n - 1} hold"
            yield _kept(f"{slots} zeros for {which}", partial(_zeroed, of, slice(0, n)))
        newest = "the newest slot of every call holds"
        yield _kept(f"{newest} zeros for {which}", partial(_zeroed, of, slice(-1, None)))
        if len(of) == 1:
            yield _kept(f"all slots hold zeros for {which}", partial(_zeroed, of, slice(None)))


def _pages(n_ctx: int) -> Iterator[Way]:
    """A page of the cache is read in the place of another one."""
    for size in PAGES:
        for page in range(1, min(-(-n_ctx // size), FEW)):
            words = f"slots {page * size} … {(page + 1) * size - 1} are read from those of page "
            yield _kept(f"{words}0 (pages of {size})", partial(_read_from, size, page))

    for size in PAGES:
        for left in ("zeros", "what was there"):
            words = f"a token that begins a page of {size} is written over the one before it, and "
            late = partial(_too_late, size, left == "zeros")
            yield Way(f"{words}leaves {left} in its own slot", joined=late, fault="cache-slots")


def _too_late(size: int, zeros: bool, past: KeysValues, own: KeysValues) -> KeysValues:
    both = [x.copy() for x in joined(past, own)]
    length = past[0].shape[1]
    for at in range(size, both[0].shape[1], size):
        for x in both if at >= length else ():
            x[:, at - 1] = x[:, at]
            x[:, at] = 0 if zeros else x[:, at]
    return both[0], both[1]


def _tiles(n_ctx: int) -> Iterator[Way]:
    """The softmax over a cache is computed tile by tile, and put together otherwise."""
    how = {
        "are averaged": _averaged,
        "are put together without scaling them anew": _not_rescaled,
    }
    for size in TILES:
        if size >= n_ctx:
            break
        for words, softmax in how.items():
            for single in (False, True):
                where = "in a call of a single token, " if single else "with a cache, "
                yield Way(
                    f"{where}tiles of {size} sources {words}",
                    softmax=partial(_in_tiles, softmax, size, single),
                    fault="cache-tiles",
                )


def _in_tiles(
    made: Callable[[list[Array]], list[Array]], size: int, single: bool, before: Before, x: Array
) -> Array:
    if not before or (single and x.shape[-2] > 1) or x.shape[-1] <= size:
        return ops.softmax(x)
    at = range(size, x.shape[-1], size)
    found: Array = np.concatenate(made(np.split(x, list(at), axis=-1)), axis=-1)
    return found


def _averaged(tiles: list[Array]) -> list[Array]:
    """Each by its own sum; one that nothing is seen of has no weights, and counts."""
    seen = (np.isfinite(tile.max(axis=-1, keepdims=True)) for tile in tiles)
    each = (
        np.where(some, ops.softmax(np.where(some, tile, 0.0)), 0.0)
        for some, tile in zip(seen, tiles, strict=True)
    )
    return [tile / len(tiles) for tile in each]


def _not_rescaled(tiles: list[Array]) -> list[Array]:
    """Each by the maximum so far, and the sum by that of all."""
    tops = np.maximum.accumulate([tile.max(axis=-1, keepdims=True) for tile in tiles])
    total = sum(np.exp(tile - tops[-1]).sum(axis=-1, keepdims=True) for tile in tiles)
    return [np.exp(tile - top) / total for tile, top in zip(tiles, tops, strict=True)]


def _read_from(size: int, page: int, kept: KeysValues) -> KeysValues:
    at = np.arange(kept[0].shape[1])
    at = np.where(at // size == page, at % size, at)
    return kept[0][:, at], kept[1][:, at]


def _unbiased() -> Iterator[Way]:
    """What is cached before its bias is added, which a later call does not add."""
    for which, of in WHICH:
        words = f"{which} are cached without their bias"
        yield Way(words, unbiased=of, fault="cache-without-bias")


def _layouts() -> Iterator[Way]:
    """Memory that has one order of axes and is read in another, whenever a call ends."""
    names = ("heads", "tokens", "channels")
    for which, of in WHICH:
        for axes in permutations(range(3)):
            if axes != (0, 1, 2):
                kept = ", ".join(names[axis] for axis in axes)
                words = f"{which} are kept as [{kept}], read as [{', '.join(names)}]"
                yield replace(_kept(words, partial(_laid_out, of, axes)), fault="cache-layout")


def _laid_out(of: tuple[int, ...], axes: tuple[int, ...], kept: KeysValues) -> KeysValues:
    k, v = (x.transpose(axes).reshape(x.shape) if part in of else x for part, x in enumerate(kept))
    return k, v


def _clipped() -> Iterator[Way]:
    """What a call adds is cut off at the largest that the cache has, as by scales that were
    measured on the prompt."""
    limits = {"channel of a head": (1,), "head": (1, 2), "channel": (0, 1), "block": None}
    for which, of in WHICH:
        for of_what, axes in limits.items():
            words = f"{which} of a call are cut off at the largest that each {of_what} had before"
            yield Way(words, joined=partial(_held, of, axes), fault="cache-clipped")


def _held(
    of: tuple[int, ...], axes: tuple[int, ...] | None, past: KeysValues, own: KeysValues
) -> KeysValues:
    limits = (np.max(np.abs(x), axis=axes, keepdims=True) for x in past)
    k, v = (
        np.clip(x, -limit, limit) if part in of else x
        for part, (x, limit) in enumerate(zip(own, limits, strict=True))
    )
    return joined(past, (k, v))


def _kept(words: str, change: Callable[[KeysValues], KeysValues]) -> Way:
    return Way(words, kept=change, fault="cache-slots")


def _zeroed(of: tuple[int, ...], slots: slice, kept: KeysValues) -> KeysValues:
    both = [x.copy() for x in kept]
    for part in of:
        both[part][:, slots] = 0
    return both[0], both[1]


def _unfilled(n_ctx: int) -> Iterator[Way]:
    """Slots of zeros beside those that are filled: so many, or up to a multiple."""
    for n in range(1, EMPTY):
        slots = (
            "one slot that nobody has filled is"
            if n == 1
            else f"{n} slots that nobody has filled are"
        )
        yield Way(f"{slots} seen, as zeros", empty=partial(_so_many, n), fault="cache-slots")
    for size in dict.fromkeys((*MULTIPLES, n_ctx)):
        words = f"a cache of a multiple of {size} slots is seen as a whole, the empty ones as zeros"
        yield Way(words, empty=partial(_up_to, size), fault="cache-slots")


def _so_many(empty: int, before: Before, n: int) -> int:
    return empty if before else 0


def _up_to(size: int, before: Before, n: int) -> int:
    return -(sum(before) + n) % size if before else 0


def _unseen() -> Iterator[Way]:
    """A token of each call with a cache does not see one that it should."""
    for back in range(BACK):
        whom = "itself" if back == 0 else f"the token {back} before it"
        words = f"with a cache, a token does not see {whom}"
        yield Way(words, sources=partial(_without, back, False), fault="cache-sight")
        words = f"in a call of a single token, it does not see {whom}"
        yield Way(words, sources=partial(_without, back, True), fault="cache-sight")
    words = "the newest are put in front of the cache, and the mask is made for the other order"
    yield Way(words, sources=_in_front, fault="cache-sight")
    words = "the tokens of a call see those before it, and only the first of their own"
    yield Way(words, sources=_first_alone, fault="cache-sight")


def _without(back: int, single: bool, before: Before, n: int) -> Mask:
    seen, past = right_sources(before, n), sum(before)
    if before and not (single and n > 1):
        at = np.arange(n)
        inside = past + at - back >= 0
        seen[at[inside], (past + at - back)[inside]] = False
    return seen


def _in_front(before: Before, n: int) -> Mask:
    """A triangle over [new, old], in the order [old, new]."""
    if not before:
        return right_sources(before, n)
    past = sum(before)
    return np.roll(np.tri(n, past + n, past, dtype=np.bool_), -n, axis=1)


def _first_alone(before: Before, n: int) -> Mask:
    seen, past = right_sources(before, n), sum(before)
    if before:
        seen[:, past + 1 :] = False
    return seen


def _in_one_block() -> Iterator[Way]:
    """What a block may do that the others do not."""
    yield Way("the cache is not read", sources=_own_alone, fault="cache-sight")
    both = (0, 1)
    yield _kept("slot 0 holds zeros for keys and values", partial(_zeroed, both, slice(0, 1)))
    for precision in (BFLOAT16, FLOAT16):
        words = f"keys and values are kept in {precision.name}"
        yield _quantised(words, both, precision.round)


def _own_alone(before: Before, n: int) -> Mask:
    seen = right_sources(before, n)
    seen[:, : sum(before)] = False
    return seen


def _rounded() -> Iterator[Way]:
    """Numbers that were rounded when a call ends."""
    scales = {
        "a call": None,
        "each head": (1, 2),
        "each token": (0, 2),
        "each token of each head": (2,),
        "each channel": (1,),
    }
    for which, of in WHICH:
        for bits in (8, 4):
            for of_what, axes in scales.items():
                words = f"{which} are kept in {bits} bits, one scale for {of_what}"
                yield _quantised(words, of, partial(_on_a_grid, 2 ** (bits - 1) - 1, axes))
        for precision in (BFLOAT16, FLOAT16):
            words = f"{which} are kept in {precision.name}"
            yield _quantised(words, of, precision.round)


def _quantised(words: str, of: tuple[int, ...], rounding: Callable[[Array], Array]) -> Way:
    def kept(both: KeysValues) -> KeysValues:
        k, v = (
            np.asarray(rounding(x), x.dtype) if part in of else x for part, x in enumerate(both)
        )
        return k, v

    return Way(words, kept=kept, fault="cache-rounded", quantising=True)


def _on_a_grid(levels: int, axes: tuple[int, ...] | None, x: Array) -> Array:
    top = np.max(np.abs(x), axis=axes, keepdims=True)
    step = np.where(top > 0, top / levels, 1.0)
    made: Array = np.rint(x / step) * step
    return made
