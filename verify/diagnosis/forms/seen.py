"""Who sees whom, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Seen = NDArray[np.bool_]

#: Pairs of a target and a source that are named.
MOST = 4


def described(seen_TS: Seen, alike_T: Seen | None = None) -> str:
    """``target t sees sources t-15 … t``, or what is unusual, pair by pair.

    Args:
        seen_TS: which source each target sees.
        alike_T: targets that look at all sources alike, whatever their scores.
    """
    alike_T = np.zeros(len(seen_TS), np.bool_) if alike_T is None else alike_T
    empty_T = ~seen_TS.any(axis=-1) & ~alike_T
    some = np.flatnonzero(seen_TS.any(axis=-1))
    said = [_shape(seen_TS, some) or _but_first(seen_TS, some) or _pairs(seen_TS, some)]
    if alike_T.any():
        said.append(f"{_targets(alike_T)} none, and all sources count alike (a plain mean)")
    if empty_T.any():
        said.append(f"{_targets(empty_T)} none")
    return "; ".join(word for word in said if word)


def _targets(which_T: Seen) -> str:
    at = np.flatnonzero(which_T)
    named = ", ".join(map(str, at[:MOST])) + (" …" if len(at) > MOST else "")
    return f"target {named} sees" if len(at) == 1 else f"targets {named} see"


def _but_first(seen_TS: Seen, targets: NDArray[np.intp]) -> str:
    """What is so of all but the first target, who would see nobody."""
    own = len(seen_TS) > 2 and len(targets) > 1 and targets[0] == 0
    if (
        own
        and seen_TS[0, 0]
        and not seen_TS[0, 1:].any()
        and (words := _shape(seen_TS, targets[1:]))
    ):
        return f"{words}; the first sees itself"
    return ""


def _shape(seen_TS: Seen, targets: NDArray[np.intp]) -> str:
    """Of the targets that see somebody, as a rule; empty where it is none."""
    if not len(targets):
        return ""
    sources = seen_TS.shape[-1]
    t, s = targets[:, None], np.arange(sources)[None, :]
    seen, causal = seen_TS[targets], s <= t
    if seen.all():
        return "every target sees every source"
    apart = np.broadcast_to(s - t, seen.shape)
    offsets = np.unique(apart[seen])
    if np.array_equal(seen, np.isin(apart, offsets)):
        return _by_distance(offsets, sources)
    return _blocks(seen, t, s, causal) or _columns(seen, causal)


def _by_distance(offsets: NDArray[np.intp], sources: int) -> str:
    """Whether a source is seen depends on how far it is."""
    low, high = int(offsets[0]), int(offsets[-1])
    first = "0" if low <= 1 - sources else _place(low)
    last = "the last" if high >= sources - 1 else _place(high)
    if len(offsets) < high - low + 1:
        missing = sorted(set(range(low, high + 1)) - set(map(int, offsets)))
        if len(missing) <= MOST:
            hidden = ", ".join(_place(by) if by else "itself" for by in missing)
            return f"target t sees sources {first} … {last} but {hidden}"
        named = ", ".join(_place(int(by)) for by in offsets[::-1][:MOST])
        return f"target t sees sources {named}{' …' if len(offsets) > MOST else ''}"
    if low == high:
        return f"target t sees source {_place(low)} alone"
    only = " (only the future)" if low > 0 else ""
    itself = " (itself hidden)" if high < 0 or low > 0 else ""
    return f"target t sees sources {first} … {last}{only or itself}"


def _place(by: int) -> str:
    return f"t{by:+d}" if by else "t"


def _blocks(seen: Seen, t: NDArray[np.intp], s: NDArray[np.intp], causal: Seen) -> str:
    """Chunks of one size, that are seen whole, or as far as the target."""
    for size in range(2, seen.shape[-1]):
        same = s // size == t // size
        if np.array_equal(seen, same & causal):
            return f"target t sees no more than its chunk of {size}"
        if np.array_equal(seen, same):
            return f"target t sees its whole chunk of {size}, and nothing else"
        if np.array_equal(seen, s // size <= t // size):
            return f"target t sees all of its chunk of {size}, the future in it too"
    return ""


def _columns(seen: Seen, causal: Seen) -> str:
    """Some sources are seen by nobody, or by all."""
    nobody: Seen = np.asarray(~seen.any(axis=0))
    everybody: Seen = np.asarray(seen.all(axis=0))
    if nobody.any() and np.array_equal(seen, causal & ~nobody):
        return f"{_sources(nobody)} seen by nobody"
    if np.array_equal(seen, causal | everybody):
        return f"{_sources(everybody)} seen by all, the future too"
    return ""


def _sources(which_S: Seen) -> str:
    at = np.flatnonzero(which_S)
    if len(at) == 1:
        return f"source {at[0]} is"
    if len(at) > 2 and np.array_equal(at, np.arange(at[0], at[-1] + 1)):
        return f"sources {at[0]} … {at[-1]} are"
    return f"sources {', '.join(map(str, at[:MOST]))}{' …' if len(at) > MOST else ''} are"


def _pairs(seen_TS: Seen, targets: NDArray[np.intp]) -> str:
    """What is other than it should be."""
    if not len(targets):
        return ""
    seen = seen_TS[targets]
    causal = np.arange(seen.shape[-1]) <= targets[:, None]
    wrong = [(int(targets[i]), int(s), bool(seen[i, s])) for i, s in np.argwhere(seen != causal)]
    named = [f"{t} {'sees' if sees else 'does not see'} {s}" for t, s, sees in wrong[:MOST]]
    more = f", and {len(wrong) - MOST} pairs more" if len(wrong) > MOST else ""
    return f"target {', '.join(named)}{more}"
