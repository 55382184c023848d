"""Two faults of the catalogue in one operation, or in two of which one is hidden.

Where they lie in different operations, each acts in its own. Where they lie in the same one, what
they add to its result is added up, which is exact for sums and products and not tried for long
where it is not: the pair is accepted only where it explains the site as one fault would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gpt_verify.graph.call import Array, Call, Override
from gpt_verify.graph.run import right

#: Pairs of different operations that are computed at most.
MOST = 400


@dataclass(frozen=True)
class Single:
    """One fault, and what the site would be with it alone."""

    fault: str
    overrides: Mapping[str, Override]
    value: Array


def pairs(
    site: str,
    got: Array,
    expected: Array,
    singles: Sequence[Single],
    predict: Callable[[Mapping[str, Override]], Array | None],
) -> Iterator[tuple[str, str, Mapping[str, Override]]]:
    """The likeliest pairs, each with what they make of the sites.

    Args:
        site: that is judged.
        got: what the port made of it.
        expected: what it should be.
        singles: every fault that can act there.
        predict: the site with some overrides.
    """
    known = [s for s in singles if s.value.shape == got.shape and not _same(s.value, expected)]
    here = [s for s in known if s.overrides.keys() == {site} and np.isfinite(s.value).all()]
    if len(here) > 1 and np.isfinite(got).all():
        i, j = _best_sum(got - expected, [s.value - expected for s in here])
        first, second = here[i], here[j]
        act = _added(first.overrides[site], second.overrides[site])
        yield first.fault, second.fault, {site: act}
    apart = [
        (one, other)
        for one, other in combinations(known, 2)
        if one.overrides.keys().isdisjoint(other.overrides)
    ]
    best: tuple[float, Single, Single] | None = None
    for one, other in apart[:MOST]:
        value = predict({**one.overrides, **other.overrides})
        if value is None or value.shape != got.shape:
            continue
        left = float(np.sum((value - got) ** 2))
        if np.isfinite(left) and (best is None or left < best[0]):
            best = left, one, other
    if best is not None:
        _, one, other = best
        yield one.fault, other.fault, {**one.overrides, **other.overrides}


def _same(value: Array, expected: Array) -> bool:
    """To within what rounding in float64 leaves: it changes nothing here."""
    with np.errstate(all="ignore"):
        apart = np.abs(value - expected)
        size = np.abs(expected)
    finite = np.isfinite(apart)
    return bool((apart[finite] <= 1e-13 * (size[finite] + 1e-300)).all())


def _best_sum(error: Array, changes: Sequence[Array]) -> tuple[int, int]:
    """The two whose sum leaves least of the error."""
    flat = np.stack([change.ravel() for change in changes])
    gram, with_error = flat @ flat.T, flat @ error.ravel()
    power = np.diag(gram)
    alone = power - 2 * with_error
    left = alone[:, None] + alone[None, :] + 2 * gram
    left[np.diag_indices_from(left)] = np.inf
    one, other = np.unravel_index(np.argmin(left), left.shape)
    return int(one), int(other)


def _added(one: Override, other: Override) -> Override:
    def act(call: Call) -> Array:
        made: Array = one(call) + other(call) - right(call)
        return made

    return act
