"""A tensor that differs from the checkpoint's: what happened to it on the way.

Each kind of damage is tried on the correct tensor and must give the port's, bit for bit (scaling
and quantisation: to within their own rounding). Nothing is said of what only looks similar.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.tensors import of_tensor
from gpt_verify.diagnosis.initialised import initialised
from gpt_verify.explanation import Candidate, Explanation
from gpt_verify.findings import layer_of
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import QKV, split_qkv, tensor_table

Array = NDArray[np.floating]

#: What is left of an explained difference, in units of float32's rounding: a factor and a product
#: are each rounded once.
LIMIT = 2.0
#: What is read off the numbers explains a difference that is so many times larger.
CLEAR = 8.0
_LARGEST_INT8 = 127


@dataclass(frozen=True)
class Difference:
    """One tensor of a port and what it should be, in one layout, ``[in, out]`` for matrices.

    Attributes:
        name: the checkpoint's.
        got: the port's values.
        expected: the checkpoint's.
        lookup: other tensors by name, in the same layout and cut in the same way.
        config: sizes.
    """

    name: str
    got: Array
    expected: Array
    lookup: Callable[[str], Array]
    config: Config


def explain(difference: Difference) -> Explanation:
    """Name the damage, if it is one that is known."""
    before = _score(difference.got, difference.expected, difference.expected)
    accepted: list[Candidate] = []
    rest: list[Candidate] = []
    for fault, note, predicted in _hypotheses(difference):
        if predicted.shape != difference.got.shape:
            continue
        if np.array_equal(predicted, difference.expected):
            continue  # this damage leaves this tensor as it is
        score = _score(difference.got, predicted, difference.expected)
        (accepted if score <= LIMIT else rest).append(Candidate(fault, score, note))
    if not accepted and (drawn := initialised(difference.got, difference.expected, LIMIT)):
        accepted.append(drawn)
    if not accepted and before > CLEAR * LIMIT:
        accepted += _of_a_form(difference)
    accepted.sort(key=lambda candidate: candidate.score)
    rest.sort(key=lambda candidate: candidate.score)
    return Explanation(difference.name, before, LIMIT, tuple(accepted), tuple(rest[:3]), True)


def _of_a_form(d: Difference) -> list[Candidate]:
    """What can be read off the numbers, where no damage of the catalogue was done."""
    for name, words, predicted in of_tensor(d.name, d.got, d.expected, d.config, d.lookup):
        # What was added may be larger than what it was added to.
        score = _score(d.got, predicted, predicted)
        if score <= LIMIT:
            return [Candidate(name, score, words)]
    return []


def _score(got: Array, predicted: Array, expected: Array) -> float:
    """Largest error in units of rounding that element, or one as large as the tensor's RMS."""
    with np.errstate(all="ignore"):
        rms = np.sqrt(np.mean(np.asarray(expected, np.float64) ** 2))
        error = np.abs(np.asarray(got, np.float64) - predicted)
        error = np.where(error > 0, error / (FLOAT32.u * (np.abs(predicted) + rms)), 0.0)
    return float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0))


def _hypotheses(d: Difference) -> Iterator[tuple[str, str, Array]]:
    for kind in (_rounded, _rearranged, _elsewhere, _few_rows, _one_element, _scaled):
        yield from kind(d)


def _rounded(d: Difference) -> Iterator[tuple[str, str, Array]]:
    """Through a narrower format and back."""
    for precision in (BFLOAT16, FLOAT16):
        yield f"weights-{precision.name}", "", precision.round(d.expected)
    for axis, unit in ((None, "per tensor"), (0, "per column"), (-1, "per row")):
        if axis is None or d.expected.ndim == 2:
            largest = np.max(np.abs(d.expected), axis=axis, keepdims=True)
            step = np.where(largest > 0, largest / _LARGEST_INT8, 1.0)
            fault = "weights-int8-tensor" if axis is None else "weights-int8-channel"
            yield fault, unit, np.rint(d.expected / step) * step
    fraction, exponent = np.frexp(d.expected)
    cut = np.ldexp(np.trunc(np.ldexp(fraction, 8)), exponent - 8)
    yield "weights-bfloat16-cut", "", cut
    kept = np.abs(d.expected[d.got != 0])
    if 0 < kept.size < d.got.size - 1:
        smaller = np.abs(d.expected) < np.min(kept)
        share = f"{np.mean(smaller):.0%} of it"
        yield "weights-pruned", share, np.where(smaller, np.float32(0), d.expected)


def _rearranged(d: Difference) -> Iterator[tuple[str, str, Array]]:
    """The correct numbers in the wrong places."""
    if d.expected.ndim == 2:
        yield "weights-transposed", "", d.expected.T
        yield (
            "weights-transposed",
            "memory read in the other order",
            d.expected.T.reshape(d.expected.shape),
        )
        yield (
            "weights-transposed",
            "reshaped to the other shape in the place of being transposed",
            d.expected.reshape(d.expected.shape[::-1]).T,
        )
    width = d.expected.shape[-1]
    if "/c_attn/" in d.name and width == len(QKV) * d.config.n_embd:
        parts = dict(zip(QKV, split_qkv(d.expected), strict=True))
        for order in itertools.permutations(QKV):
            if order != QKV:
                names = ", ".join(order)
                rearranged = np.concatenate([parts[part] for part in order], axis=-1)
                yield "weights-parts-permuted", f"in the order {names}", rearranged
        by_head = d.expected.reshape(*d.expected.shape[:-1], len(QKV), d.config.n_head, -1)
        interleaved = np.swapaxes(by_head, -3, -2).reshape(d.expected.shape)
        yield "weights-heads-interleaved", "q, k, v of one head side by side", interleaved
    whole = d.config.n_embd % d.config.n_head == 0
    if whole and d.expected.ndim == 2 and d.expected.shape[0] == d.config.n_embd:
        heads = d.expected.reshape(d.config.n_head, -1, width)
        yield "weights-heads-reversed", "rows", heads[::-1].reshape(d.expected.shape)


def _elsewhere(d: Difference) -> Iterator[tuple[str, str, Array]]:
    """The same tensor of another layer, or the other norm of this one; or none at all."""
    scope, _, rest = d.name.partition("/")
    table = tensor_table(d.config)
    if layer_of(d.name) is not None:
        for layer in range(d.config.n_layer):
            if scope != f"h{layer}":
                yield "weights-other-layer", f"layer {layer}", d.lookup(f"h{layer}/{rest}")
        for one, other in (("ln_1", "ln_2"), ("ln_2", "ln_1")):
            swapped = f"{scope}/{rest.replace(one, other)}"
            if rest.startswith(one) and swapped in table:
                yield "weights-other-norm", other, d.lookup(swapped)
    for value in (0.0, 1.0):
        yield "weights-missing", f"all {value:g}", np.full_like(d.expected, value)


def _few_rows(d: Difference) -> Iterator[tuple[str, str, Array]]:
    """One row zeroed, or two exchanged; columns likewise."""
    for axis, unit in ((0, "row"), (1, "column")):
        if axis >= d.expected.ndim:
            continue
        got, expected = np.moveaxis(d.got, axis, 0), np.moveaxis(d.expected, axis, 0)
        different = (got != expected).reshape(len(got), -1).any(axis=1)
        at = np.flatnonzero(different)
        if len(at) == 1:
            zeroed = expected.copy()
            zeroed[at[0]] = 0
            yield "weights-row-zeroed", f"{unit} {at[0]}", np.moveaxis(zeroed, 0, axis)
        if len(at) == 2:
            exchanged = expected.copy()
            exchanged[at] = expected[at[::-1]]
            yield (
                "weights-rows-exchanged",
                f"{unit}s {at[0]} and {at[1]}",
                np.moveaxis(exchanged, 0, axis),
            )
        if d.expected.ndim == 2:
            for places in (1, -1, 2, -2):
                rolled = np.roll(d.expected, places, axis)
                yield "weights-rows-shifted", f"{unit}s by {places}", rolled


def _one_element(d: Difference) -> Iterator[tuple[str, str, Array]]:
    """A single bit."""
    at = np.argwhere(d.got != d.expected)
    if len(at) != 1 or d.got.dtype != np.float32 or d.expected.dtype != np.float32:
        return
    index = tuple(int(i) for i in at[0])
    before, after = (np.float32(x[index]).view(np.uint32) for x in (d.expected, d.got))
    flipped = int(before ^ after)
    if flipped.bit_count() == 1:
        bit = flipped.bit_length() - 1
        fault, part = _bit(bit)
        yield fault, f"{part} of element {list(index)}", d.got


def _bit(bit: int) -> tuple[str, str]:
    if bit == 31:
        return "weights-sign-bit", "the sign"
    if bit > 22:
        return "weights-exponent-bit", f"exponent bit {bit - 23}"
    return "weights-mantissa-bit", f"mantissa bit {bit}"


def _scaled(d: Difference) -> Iterator[tuple[str, str, Array]]:
    """Everything times one number."""
    expected = np.asarray(d.expected, np.float64)
    power = float(np.sum(expected * expected))
    if power > 0 and np.isfinite(d.got).all():
        factor = float(np.sum(np.asarray(d.got, np.float64) * expected)) / power
        if (
            factor != 0.0 and abs(factor - 1.0) > 2 * LIMIT * FLOAT32.u
        ):  # else it is rounding, or a single bit
            yield "weights-scaled", f"by {factor:.7g}", expected * factor
