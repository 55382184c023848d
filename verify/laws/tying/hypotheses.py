"""Which mistake it was that made one part of wte's gradient wrong while the other is right.

Where the lookup's part is wrong, the backward pass to it may be: any mistake in the first block's
derivatives shows there. So wpe is asked, which is read in the same sum: if that is trained as it
should be, the mistake is the lookup's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.derivatives import Derivative
from gpt_verify.graph.directions import Direction
from gpt_verify.laws.explain import explain
from gpt_verify.port import Floats

#: Floors by which a part must be off in every direction before a factor is read off: noise has one.
_CLEAR = 4 * LIMIT_FLOORS
#: Derivatives of the reference along these directions.
Known = Callable[[Sequence[Direction]], Sequence[Derivative]]


@dataclass(frozen=True)
class TiedEnd:
    """What comes through one end of wte.

    Attributes:
        gradient_VD: as the port has it.
        expected: of the reference, along each direction.
    """

    gradient_VD: Floats
    expected: Sequence[Derivative]

    @property
    def got(self) -> list[float]:
        return [d.direction.along(self.gradient_VD) for d in self.expected]

    @property
    def right(self) -> bool:
        return self.floors <= LIMIT_FLOORS

    @property
    def floors(self) -> float:
        """How far off it is in the worst direction."""
        return max(d.floors(x) for d, x in zip(self.expected, self.got, strict=True))

    @property
    def blocked(self) -> bool:
        """Nothing comes through."""
        return not self.gradient_VD.any()

    @property
    def scaled(self) -> bool:
        """One factor in all directions, read off the one that is known best."""
        pairs = list(zip(self.expected, self.got, strict=True))
        if self.blocked or any(not d.floors(x) > _CLEAR for d, x in pairs):
            return False
        known, told = max(pairs, key=lambda pair: _ratio(abs(pair[0].value), pair[0].error()))
        if known.value == 0.0:  # nothing comes through where it is right, and so no factor of it
            return False
        factor, uncertain = told / known.value, known.error() / abs(known.value)
        return all(
            abs(x - factor * d.value)
            <= LIMIT_FLOORS * max(1.0, abs(factor)) * (d.error() + uncertain * abs(d.value))
            for d, x in pairs
        )


def _ratio(value: float, error: float) -> float:
    """How well a derivative is known; one of 0 is not, and rounding may leave others exact."""
    return value / error if error else (math.inf if value else 0.0)


def of_head(lookup: TiedEnd, head: TiedEnd) -> str | None:
    """The mistake of the last product where all that comes through the lookup is right."""
    return "tying-head-scaled" if lookup.right and not head.right and head.scaled else None


def of_lookup(lookup: TiedEnd, tokens: NDArray[np.int64], known: Known) -> str | None:
    """The mistake of a lookup, where that is known to be wrong by itself.

    Args:
        lookup: its part of the gradient.
        tokens: int64[B, T], the batch.
        known: derivatives of the same batch through the lookup.
    """
    if len(_read(tokens)) < 2:  # one row is all rows
        return None
    if lookup.blocked:
        return "tying-lookup-detached"
    found = explain(
        lookup,
        (
            _OfLookup("tying-lookup-scaled", lambda lookup: lookup.scaled),
            _OfLookup("tying-by-frequency", partial(_by_frequency, tokens)),
            _OfLookup("tying-padding-row", partial(_row_missing, tokens, known)),
        ),
    )
    return found.by.fault if found.by else None


@dataclass(frozen=True)
class _OfLookup:
    """A mistake of a lookup, by its name in the catalogue, and whether an end shows it."""

    fault: str
    shown: Callable[[TiedEnd], bool]
    description: str = ""

    def fits(self, lookup: TiedEnd) -> float | None:
        return 0.0 if self.shown(lookup) else None


def _read(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens from which something is predicted: not the last of a sequence."""
    return np.unique(tokens[:, :-1])


def _by_frequency(tokens: NDArray[np.int64], lookup: TiedEnd) -> bool:
    """Multiplied by how often each token occurs, it is right."""
    times_V = np.bincount(tokens.ravel(), minlength=len(lookup.gradient_VD))
    return replace(lookup, gradient_VD=lookup.gradient_VD * times_V[:, None]).right


def _row_missing(tokens: NDArray[np.int64], known: Known, lookup: TiedEnd) -> bool:
    """One token's row gets nothing, and apart from that it is right."""
    missing = [int(v) for v in _read(tokens) if not lookup.gradient_VD[v].any()]
    if len(missing) != 1:
        return False
    others = []
    for derivative in lookup.expected:
        direction = derivative.direction
        left = direction.rows().copy()
        left[missing] = 0
        others.append(replace(direction, left=left))
    return replace(lookup, expected=known(others)).right
