"""Values on a grid: rounded to steps of one size, as 8 bits have them, or to a narrower format.

Fitted is the size of a step, of the whole call, of each row of the batch, each position or each
channel: it is the largest value there over the number of steps, 127 for 8 bits. What is rounded is
what the operation makes, what it reads, or its tensors; or all of these, as under an autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from gpt_verify.diagnosis.forms.changes import Change, Pair, of_values
from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32, Precision

#: Bits → levels on each side of 0.
LEVELS = {8: (127, 128), 7: (63, 64), 6: (31, 32), 5: (15, 16), 4: (7, 8)}
Rounding = Callable[[Array], Array]
FORMATS = (BFLOAT16, FLOAT16, FLOAT32)


@dataclass(frozen=True)
class _Grid:
    """Steps of one size along some axes.

    Attributes:
        levels: steps from 0 to the largest value.
        axis: along which the largest is taken; None of all.
        largest: of the call, where that is more than one row shows.
    """

    levels: int
    axis: int | None
    largest: float | None = None

    def __call__(self, x: Array) -> Array:
        top = np.max(np.abs(x), axis=self.axis, keepdims=True)
        if self.largest is not None:
            top = np.full_like(top, self.largest)
        step = np.where(top > 0, top / self.levels, 1.0).astype(x.dtype)
        rounded: Array = np.clip(np.rint(x / step), -self.levels - 1, self.levels) * step
        return rounded


@dataclass(frozen=True)
class _Asymmetric:
    """Steps from the smallest value to the largest, 0 among them, as unsigned bytes have them."""

    steps: int
    axis: int | None

    def __call__(self, x: Array) -> Array:
        low = np.minimum(np.min(x, axis=self.axis, keepdims=True), 0.0)
        high = np.maximum(np.max(x, axis=self.axis, keepdims=True), 0.0)
        step = np.where(high > low, (high - low) / self.steps, 1.0)
        zero = np.clip(np.rint(-low / step), 0, self.steps)
        rounded: Array = (np.clip(np.rint(x / step) + zero, 0, self.steps) - zero) * step
        return rounded


def fits(e: Evidence) -> Iterator[Fitted]:
    if not np.isfinite(e.got).all():
        return
    if e.got.ndim == 2 or e.site.kind == "attn.pattern":
        yield from of_values(_made)(e)
    if e.got.ndim == 2:
        yield from _read(e)
        yield from _weights(e)
        yield from _all_along(e)


def _made(pair: Pair) -> Iterator[Change]:
    """What is made, or added, lies on a grid."""
    best = min(
        _roundings(pair.largest, pair.rows, pair.got.ndim == 2),
        key=lambda one: _typical(pair.got, one[0](pair.should)),
    )
    yield Change(best[0], f"values {best[1]}", quantising=True)


def _read(e: Evidence) -> Iterator[Fitted]:
    """What is read is put on one first."""
    if not e.site.inputs or e.site.inputs[0] not in e.shown:
        return
    largest = float(np.max(np.abs(e.shown[e.site.inputs[0]])))
    tried = [(_Reading(rounding), words) for rounding, words in _roundings(largest, 1)]
    act, words = min(tried, key=lambda one: _typical(e.got, one[0](e.call)))
    yield e.alone(act, f"input {words}", quantising=True)


def _weights(e: Evidence) -> Iterator[Fitted]:
    """The matrix is rounded to a narrower format on its way."""
    if e.site.operation != "linear":
        return
    name = e.site.weights[0]
    for precision in FORMATS:
        rounded = precision.round(e.call.w(name).astype(np.float32))
        act = e.with_tensors({name: rounded})
        yield e.alone(act, f"weights rounded to {precision.name}")


def _all_along(e: Evidence) -> Iterator[Fitted]:
    """What is read, the tensors and what is made are all in a narrower format, or two of these."""
    if not e.site.inputs or not e.site.weights or e.site.inputs[0] not in e.shown:
        return
    tried = [
        (_InFormat(precision, *some), f"{_listing(some)} rounded to {precision.name}")
        for precision in FORMATS
        for some in product((True, False), repeat=3)
        if sum(some) > 1
    ]
    act, words = min(tried, key=lambda one: _typical(e.got, one[0](e.call)))
    yield e.alone(act, words, quantising=True)


def _listing(some: Sequence[bool]) -> str:
    return " and ".join(
        what for what, has in zip(("input", "tensors", "output"), some, strict=True) if has
    )


@dataclass(frozen=True)
class _InFormat:
    """An operation some of whose numbers are kept in a narrower format."""

    precision: Precision
    reads: bool
    tensors: bool
    makes: bool

    def __call__(self, call: Call) -> Array:
        def lookup(name: str) -> Array:
            value = np.asarray(call.lookup(name))
            return np.asarray(self.precision.round(value), call.dtype) if self.tensors else value

        inner = replace(call, lookup=lookup)
        made = _Reading(self.precision.round)(inner) if self.reads else right(inner)
        return np.asarray(self.precision.round(made) if self.makes else made, call.dtype)


def _typical(got: Array, predicted: Array) -> tuple[float, float]:
    """The median error: some elements fall to the other side of a step; and the mean one, which
    tells those apart that have most elements in common."""
    if predicted.shape != got.shape:
        return np.inf, np.inf
    error = np.abs(got - predicted)
    return float(np.median(error)), float(np.mean(error))


def _roundings(largest: float, rows: int, channels: bool = True) -> Iterator[tuple[Rounding, str]]:
    call = "the call" if rows > 1 else "the sequence or the call"
    for bits, all_levels in LEVELS.items():
        yield _Grid(all_levels[0], None, largest), f"in {bits} bits, one scale for {call}"
        for levels in all_levels:
            yield _Grid(levels, None), f"in {bits} bits, one scale for each sequence"
            yield _Grid(levels, -1), f"in {bits} bits, one scale for each position"
            if channels:
                yield _Grid(levels, 0), f"in {bits} bits, one scale for each channel"
        for steps in (2**bits - 1, 2**bits):
            yield (
                _Asymmetric(steps, None),
                f"in {bits} bits from the least to the largest, one scale",
            )
            yield (
                _Asymmetric(steps, -1),
                f"in {bits} bits from the least to the largest, one scale for each position",
            )
    for precision in FORMATS:
        yield precision.round, f"rounded to {precision.name}"


class _Reading:
    """What is read is rounded."""

    def __init__(self, rounding: Rounding) -> None:
        self._rounding = rounding

    def __call__(self, call: Call) -> Array:
        name = call.site.inputs[0]
        values = {other: call.values[other] for other in call.site.inputs}
        values[name] = np.asarray(self._rounding(values[name]), call.dtype)
        return right(replace(call, values=values))


FORM = Form("values-on-a-grid", "rounds values to steps of a grid", fits)
