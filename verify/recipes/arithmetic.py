"""Arithmetic with the numbers that an engine may come to, where each rounding has its place.

Half-precision engines compute in float32 registers and round what they store. What is stored can
be told exactly but for three things: sums have an unknown order, libraries' functions err by some
units of float32, and a kernel may go on with more digits than a register holds. A ``Span`` carries
the smallest and the largest number that these leave open, and is rounded at both ends: rounding to
nearest keeps an order, so that whatever lay within lies within afterwards. Most spans close when
they are stored, because float32 is much finer than the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.budgets import FUNCTION_ULP
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.scores import limit_max

Array = NDArray[np.floating]

#: Of the registers.
U = FLOAT32.u


@dataclass(frozen=True, eq=False)
class Span:
    """Numbers between ``low`` and ``high``, element by element, in float64.

    Attributes:
        low, high: the ends; the same array where nothing is open.
        mid: what the most literal engine comes to, that rounds every result to float32.
    """

    low: Array
    mid: Array
    high: Array

    def __add__(self, other: Span) -> Span:
        return _register(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def __sub__(self, other: Span) -> Span:
        return self + other.negative()

    def __mul__(self, other: Span) -> Span:
        if self.known and other.known:
            product = self.mid * other.mid
            return _register(product, product, product)
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return _register(np.minimum.reduce(ends), self.mid * other.mid, np.maximum.reduce(ends))

    def __truediv__(self, other: Span) -> Span:
        """By a positive number: divided, or multiplied with the reciprocal."""
        return (self * Span(1 / other.high, 1 / other.mid, 1 / other.low)).loose(2)

    @property
    def known(self) -> bool:
        """Nothing is open."""
        return self.low is self.high

    def negative(self) -> Span:
        if self.known:
            return exact(-self.mid)
        return Span(-self.high, -self.mid, -self.low)

    def square(self) -> Span:
        ends = self.low**2, self.high**2
        inside = (self.low < 0) & (self.high > 0)
        low = np.where(inside, 0.0, np.minimum(*ends))
        return _register(low, self.mid**2, np.maximum(*ends))

    def loose(self, units: float | Array) -> Span:
        """The same where so many more results of float32 are rounded on the way."""
        return self.within(units * U * np.maximum(np.abs(self.low), np.abs(self.high)))

    def within(self, error: Array) -> Span:
        """The same, so much further apart on either side."""
        return Span(self.low - error, self.mid, self.high + error)

    def store(self, p: Precision) -> Span:
        """What is left of them in this format. What is tiny may be flushed to zero."""
        low, mid, high = (
            np.asarray(p.round(x), np.float64) for x in (self.low, self.mid, self.high)
        )
        small = (np.maximum(np.abs(low), np.abs(high)) < FLOAT32.tiny) & ((low != 0) | (high != 0))
        if small.any():
            low, high = (
                np.where(small, np.minimum(low, 0), low),
                np.where(small, np.maximum(high, 0), high),
            )
        return _closed(low, mid, high)

    def cut(self, p: Precision) -> Span:
        """The same, rounded towards zero: the digits that the format does not have are left out."""
        return _closed(*(_towards_zero(x, p) for x in (self.low, self.mid, self.high)))

    def map(self, function: Callable[[Array], Array], units: float | Array = FUNCTION_ULP) -> Span:
        """A rising function of a library, which errs by so many units of float32."""
        if self.known:
            found = function(self.mid)
            return Span(found, _float32(found), found).loose(units)
        low, mid, high = (function(x) for x in (self.low, self.mid, self.high))
        return Span(low, _float32(mid), high).loose(units)

    def rsqrt(self) -> Span:
        """1 / √x, whichever way it is made."""
        low, mid, high = (1 / np.sqrt(x) for x in (self.high, self.mid, self.low))
        return Span(low, _float32(mid), high).loose(FUNCTION_ULP)

    def or_else(self, other: Span) -> Span:
        """Whichever of two ways an engine takes; literally the first."""
        return _closed(np.minimum(self.low, other.low), self.mid, np.maximum(self.high, other.high))

    def select(self, keep: NDArray[np.bool_]) -> Span:
        """Zero where it is not kept."""
        low, mid, high = (np.where(keep, x, 0.0) for x in (self.low, self.mid, self.high))
        return _closed(low, mid, high)

    def each(self, rearrange: Callable[[Array], Array]) -> Span:
        """The same numbers in another shape."""
        if self.known:
            return exact(rearrange(self.mid))
        return Span(*(rearrange(x) for x in (self.low, self.mid, self.high)))


def exact(x: Array | float) -> Span:
    """Numbers that are known."""
    value = np.asarray(x, np.float64)
    return Span(value, value, value)


def constant(x: float) -> Span:
    """A number that a program writes, as float32 has it or with all its digits."""
    return _register(*(np.asarray(x, np.float64),) * 3)


def total(x: Span) -> Span:
    """The sum over the last axis, in float32, in whatever order: after Higham and Mary (2019), as
    in ``graph.operations.linear``."""
    n = x.mid.shape[-1]
    low, mid, high = (np.sum(a, axis=-1, keepdims=True) for a in (x.low, x.mid, x.high))
    if n == 1:
        return Span(low, mid, high)
    largest = np.maximum(np.abs(x.low), np.abs(x.high))
    size = np.sqrt(n * (np.sum(largest**2, axis=-1, keepdims=True) + mid**2))
    return Span(low, _float32(mid), high).within(limit_max(mid.size) * U * size)


def mean(x: Span) -> Span:
    return total(x) / exact(float(x.mid.shape[-1]))


def product(x: Span, w: Array, start: Array | float = 0.0) -> Span:
    """x @ w, accumulated in float32 in whatever order, which may begin with ``start``.

    Args:
        x: [..., T, n].
        w: [..., n, O], known.
        start: what is added to it before anything is rounded.
    """
    n = w.shape[-2]
    made = x.mid @ w
    square, w2 = x.mid**2, w**2
    error = limit_max(made.size) * U * np.sqrt(n * (square @ w2 + made**2 + np.square(start)))
    if n == 1 and np.all(np.asarray(start) == 0):
        error = np.zeros_like(made)
    if not x.known:
        error += np.maximum(x.high - x.mid, x.mid - x.low) @ np.abs(w)
    made = made + start
    return Span(made, _float32(made), made).within(error)


def _float32(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(np.float64)


def _register(low: Array, mid: Array, high: Array) -> Span:
    """What a register may hold of these: rounded, or with more digits in a kernel that goes on."""
    if low is high:
        rounded = _float32(low)
        if np.array_equal(rounded, low):
            return Span(low, low, low)
        return Span(np.minimum(low, rounded), rounded, np.maximum(low, rounded))
    return Span(np.minimum(low, _float32(low)), _float32(mid), np.maximum(high, _float32(high)))


def _towards_zero(x: Array, p: Precision) -> Array:
    near = np.asarray(p.round(x), np.float64)
    if p.name == "float16":
        less = (near.astype(np.float16).view(np.int16) - np.int16(1)).view(np.float16)
    else:
        less = (near.astype(np.float32).view(np.int32) - np.int32(1 << 16)).view(np.float32)
    return np.where(np.abs(near) > np.abs(x), less.astype(np.float64), near)


def _closed(low: Array, mid: Array, high: Array) -> Span:
    return exact(mid) if np.array_equal(low, high) else Span(low, mid, high)
