"""How far the bits of a port are those of a recipe, beside how far they would be by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.scores import FALSE_ALARM
from gpt_verify.recipes.arithmetic import Array, Span


@dataclass(frozen=True)
class Agreement:
    """The elements of a site, or of several, beside what a recipe makes of them.

    Attributes:
        elements: how many there are.
        equal: have the bits of the most literal engine that follows the recipe.
        outside: have a number that no engine comes to that follows it.
        decided: how many elements speak for the recipe if they are not outside: those of which it
            says one number; of a site that is kept in float32, where it says an interval of each,
            all.
        by_chance: how many of the decided ones would be as they are if the port rounded by as much
            as it does, and in other elements.
        next_to: are one step of the format away from the literal engine.
        furthest: the largest distance from it, in such steps.
    """

    elements: int = 0
    equal: int = 0
    outside: int = 0
    decided: int = 0
    by_chance: int = 0
    next_to: int = 0
    furthest: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.elements + other.elements,
            self.equal + other.equal,
            self.outside + other.outside,
            self.decided + other.decided,
            self.by_chance + other.by_chance,
            self.next_to + other.next_to,
            max(self.furthest, other.furthest),
        )

    @property
    def share(self) -> float:
        """Of the elements, those that are equal."""
        return self.equal / self.elements if self.elements else 0.0

    @property
    def chance(self) -> float:
        """The share of decided elements that chance would give; 1 where nothing is decided."""
        return self.by_chance / self.decided if self.decided else 1.0

    @property
    def open(self) -> int:
        """Elements of which the recipe leaves more than one number open."""
        return self.elements - self.decided

    def fits(self, tried: int) -> bool:
        """Nothing is outside, and chance would not have it so: one of as many recipes as were
        tried, each on so many elements, with a probability below that of a false alarm."""
        if self.outside or not self.decided:
            return False
        missed = self.decided - self.by_chance
        # One more, so that a share of none among few is not taken for a probability of none.
        chance = (self.by_chance + 1) / (self.decided + 1)
        return missed > 0 and self.decided * math.log(1 / chance) > math.log(tried / FALSE_ALARM)


def kept_in(value: Array, declared: Precision) -> Precision:
    """What a site is stored in: the declared format where that holds every number, else float32."""
    return declared if np.array_equal(declared.round(value), value) else FLOAT32


def agreement(
    got: Array, made: Span, right: Array, kept: Precision, declared: Precision
) -> Agreement:
    """Compare the numbers of a port with those of a recipe.

    Args:
        got: what the port shows; of what is masked, nothing is handed over. One axis.
        made: what the recipe makes, before it is stored.
        right: the operation in float64.
        kept: the format of ``got``.
        declared: what the port declares.
    """
    stored = made.store(kept)
    outside = ~((got >= stored.low) & (got <= stored.high))
    if kept is declared:
        decided = stored.low == stored.high
        chance = _permuted(got, right, kept)
    else:
        decided = np.ones(got.shape, np.bool_)
        chance = np.asarray(declared.round(right), np.float64)
    alike = decided & (chance >= stored.low) & (chance <= stored.high)
    away = np.abs(_steps(got, kept) - _steps(stored.mid, kept))
    return Agreement(
        got.size,
        int(np.sum(away == 0)),
        int(outside.sum()),
        int(decided.sum()),
        int(alike.sum()),
        int(np.sum(away == 1)),
        int(away.max(initial=0)),
    )


#: Distances from the right value that are told apart, in steps of the format.
_FURTHEST = 64


def agreement_of_distances(got: Array, made: Span, right: Array, kept: Precision) -> Agreement:
    """Compare how far the numbers of a port and those of a recipe are from the right ones.

    The distribution function of n samples differs from the true one by more than √(ln(2/α) / 2n) in
    a share α of cases (Massart 1990), here once for each side. What is beyond that counts as
    outside. Where right numbers would pass as well, nothing is decided.

    Args:
        got: what the port shows. One axis.
        made: the recipe; not a number where it was not made.
        right: the operation in float64.
        kept: the format of ``got``.
    """
    some = np.isfinite(made.mid)
    exact = _steps(np.asarray(kept.round(right[some]), np.float64), kept)
    away = np.where(exact < 0, -1, 1)  # from zero, so that truncation is no symmetric noise
    own, other = (
        np.clip(away * (_steps(x[some], kept) - exact), -_FURTHEST, _FURTHEST)
        for x in (got, made.mid)
    )
    n = int(some.sum())
    limit = 2 * math.sqrt(math.log(2 / FALSE_ALARM) / 2 / n)
    beyond = max(0, math.ceil((_apart(own, other) - limit) * n))
    tellable = _apart(np.zeros_like(other), other) > limit
    apart = np.abs(own - other)
    equal, next_to = int(np.sum(apart == 0)), int(np.sum(apart == 1))
    return Agreement(n, equal, beyond, n, 0 if tellable else n, next_to, int(apart.max(initial=0)))


def _apart(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The largest distance between two distribution functions of whole numbers."""
    every = np.arange(-_FURTHEST, _FURTHEST + 1)
    below = [np.searchsorted(np.sort(x), every, side="right") / x.size for x in (one, other)]
    return float(np.max(np.abs(below[0] - below[1])))


def _permuted(got: Array, right: Array, kept: Precision) -> Array:
    """The numbers of a port whose errors are those of this one, in other elements."""
    step = spacing(right, kept)
    errors = (got - right) / step
    order = np.random.default_rng(got.size).permutation(got.size)
    return np.asarray(kept.round(right + errors[order] * step), np.float64)


def spacing(x: Array, p: Precision) -> Array:
    """The distance from one number of the format to the next, where x lies."""
    smallest = 2.0**-24 if p.name == "float16" else 2.0**-149
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.abs(x)))
    return np.asarray(np.maximum(2.0 ** (exponent + 1) * p.u, smallest))


def _steps(x: Array, p: Precision) -> NDArray[np.int64]:
    """The number of a number in the format, counted from zero."""
    bits = {"float16": np.float16}.get(p.name, np.float32)
    raw = np.ascontiguousarray(x.astype(bits)).view(np.int16 if bits is np.float16 else np.int32)
    found = raw.astype(np.int64)
    if p.name == "bfloat16":
        found >>= 16
    sign = np.int64(1) << (15 if bits is np.float16 or p.name == "bfloat16" else 31)
    return np.where(found < 0, -(found + sign), found)
