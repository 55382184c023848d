"""A form that a wrong operation may have, whose numbers are read off what the port has made.

A catalogue names what it lists. Where none of its faults fits, the numbers themselves say much:
which rows were looked up, which sources a target saw, what a term of a sum was multiplied with. A
form is accepted exactly as a fault of the catalogue is: the operation is computed with it from the
port's own input, and the score of the site must fall below its limit. It has so few numbers of its
own, beside those that it must explain, that chance does not get there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.numerics.budgets import Measured
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

Array = NDArray[np.floating]

#: Positions that a form with one number for each channel needs.
FEWEST = 4


@dataclass(frozen=True)
class Fitted:
    """One way in which an operation may be wrong, with its numbers.

    Attributes:
        overrides: site → what it becomes; the site that failed, or one that is hidden before it.
        words: what was found, for a person: ``0.9 · x + f(x), not x + f(x)``.
        quantising: as of ``AtSites``.
        also: what other operations read in the place of a site that was shown.
        fault: the fault of the catalogue that this is, where there is one that a law alone knows.
        explains: sites before this one that are wrong by the same, whatever else would do that.
    """

    overrides: Mapping[str, Override]
    words: str
    quantising: bool = False
    also: Mapping[str, Override] = field(default_factory=dict)
    fault: str = ""
    explains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What is known of one operation that is wrong by itself.

    Attributes:
        call: the operation, with what the port has shown before it.
        got: what the port made of it.
        expected: what the reference makes of the same input, with its budget.
        shown: the sites that the port has shown, in order.
        batch: what it made of all rows of the batch, this one among them.
        row: which of them this one is.
    """

    call: Call
    got: Array
    expected: Measured
    shown: Mapping[str, Array]
    batch: Array
    row: int = 0

    @property
    def site(self) -> Site:
        return self.call.site

    @property
    def config(self) -> Config:
        return self.call.config

    @property
    def right(self) -> Array:
        """What it should be."""
        return np.asarray(self.expected.value, np.float64)

    def at(self, site: str) -> Call:
        """The operation that makes another site."""
        return replace(self.call, site=sites(self.config)[site])

    def beside(self, kind: str) -> str | None:
        """The site of a kind in the same layer; None where the model has none."""
        name = kind if self.site.layer is None else f"h.{self.site.layer}.{kind}"
        return name if name in sites(self.config) else None

    def alone(self, act: Override, words: str, quantising: bool = False) -> Fitted:
        """The operation itself becomes this."""
        return Fitted({self.site.name: act}, words, quantising)

    def distance(self, predicted: Array) -> float:
        """RMS of the error in units of the budget: what tells a better guess from a worse one."""
        assert self.expected.budget is not None, "an operation's result has a budget"
        if predicted.shape != self.got.shape:
            return np.inf
        z = (self.got - predicted) / self.expected.budget
        return float(np.sqrt(np.mean(z * z))) if np.isfinite(z).all() else np.inf

    def with_tensors(self, tensors: Mapping[str, Array]) -> Override:
        """The correct operation on other tensors, by the names that it asks for."""

        def act(call: Call) -> Array:
            def lookup(name: str) -> Array:
                return tensors[name] if name in tensors else call.lookup(name)

            return right(replace(call, lookup=lookup))

        return act


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes:
        name: stands in ``explained_by`` as a fault's does.
        summary: completes "the port …", as a fault's does.
        fits: what may have been done to an operation, likeliest first.
    """

    name: str
    summary: str
    fits: Callable[[Evidence], Iterable[Fitted]]


def snapped(value: float) -> float:
    """The short number that one read off in float64 was, if it was one."""
    if not np.isfinite(value):
        return value
    short = float(f"{value:.9g}")
    return short if abs(value - short) <= 1e-12 * abs(value) else value


def said(value: float) -> str:
    """A number that was read off, in as many digits as mean something in float32."""
    return f"{value:.6g}"


def listed(values: Iterable[object], most: int = 8) -> str:
    """The first of them: ``0 0 1 0 2 0 …``."""
    found = [str(value) for value in values]
    return " ".join(found[:most]) + (" …" if len(found) > most else "")
