"""Tensors that differ: pieces in other places, factors by row or column, few ranks, a grid.

Fitted are which piece of the correct tensor stands where, or the order in which its axes were read,
to the bit; one factor for each row or column; a difference of few ranks, spread over many more rows
and columns than that; steps of a grid. A tensor has far more numbers than any of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.form import Array, listed, said
from gpt_verify.diagnosis.forms.order import described
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import QKV, tensor_table

#: Names of what is found, each with a sentence that completes "the port …".
NAMES = {
    "weight-rearranged": "reads a matrix in another order",
    "part-equal": "has one part, head or bias in the place of another",
    "weight-scaled": "multiplies a tensor by rows or by columns, or adds a constant to it",
    "weight-low-rank": "adds a matrix of few ranks to a matrix",
    "weight-bytes": "reads the bytes of each number of a tensor in the other order",
    "weight-outliers": "has lost the largest elements of a tensor",
    "weight-on-a-grid": "rounds a tensor to steps of a grid",
    "weight-interpolated": "has rows of a tensor between others that are made of these",
}
#: What is tried: name, words, the tensor with it.
Tried = tuple[str, str, Array]
#: Ranks at most, and how many times as many rows and columns must differ.
RANKS, SPREAD = 8, 4
#: Bits of a grid, and rows that share a scale.
BITS, GROUPS = range(2, 9), (8, 16, 32, 64, 128)
#: Rows from one that is right to the next.
STRIDES = (2, 3, 4, 8)
#: Pieces that are named, and columns that a piece has at least, on the average.
MOST, LEAST = 3, 3


def of_tensor(
    name: str, got: Array, expected: Array, config: Config, lookup: Callable[[str], Array]
) -> Iterator[Tried]:
    """What may have been done to a tensor, those that say most first."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return
    yield from _bytes(got, expected)
    yield from _pieces(name, got, expected, config)
    yield from _rows(got, expected)
    yield from _between(got, expected)
    yield from _reread(got, expected, config)
    yield from _beside(name, got, expected, config, lookup)
    yield from _outliers(got, expected)
    yield from _scaled(got, expected)
    if expected.ndim == 2:
        yield from _grid(got, expected)
        yield from _low_rank(got, expected)


def _bytes(got: Array, expected: Array) -> Iterator[Tried]:
    """Written on a machine that begins a number with its other end. What is no number then may have
    been made 0."""
    swapped = np.ascontiguousarray(expected, np.float32).byteswap()
    finite = np.isfinite(swapped)
    if np.array_equal(np.asarray(got, np.float32)[finite], swapped[finite]):
        yield (
            "weight-bytes",
            "big-endian for little-endian, or the reverse",
            np.where(finite, swapped, got),
        )


def _pieces(name: str, got: Array, expected: Array, config: Config) -> Iterator[Tried]:
    """Parts, heads: each of them one of the correct ones, as it is or transposed, or zeros."""
    width = expected.shape[-1]
    layouts: list[list[str]] = []
    whole = config.n_embd % config.n_head == 0
    if width == len(QKV) * config.n_embd and config.keys.fused:
        layouts.append(list(QKV))
        if whole:
            layouts.append([f"head {h} of {part}" for part in QKV for h in range(config.n_head)])
    elif width == config.n_embd and whole:
        layouts.append([f"columns of head {h}" for h in range(config.n_head)])
    for names in layouts:
        found = _from_pieces(
            names, np.split(got, len(names), -1), np.split(expected, len(names), -1)
        )
        if found is not None:
            words, pieces = found
            yield "part-equal", words, np.concatenate(pieces, axis=-1)


def _from_pieces(
    names: Sequence[str], got: Sequence[Array], expected: Sequence[Array]
) -> tuple[str, list[Array]] | None:
    choices = [(name, piece) for name, piece in zip(names, expected, strict=True)]
    if expected[0].ndim == 2 and expected[0].shape[0] == expected[0].shape[1]:
        choices += [(f"{name} transposed", piece.T) for name, piece in choices]
    choices.append(("nothing", np.zeros_like(expected[0])))
    words, pieces = [], []
    for i, piece in enumerate(got):
        order = [i, *(j for j in range(len(choices)) if j != i)]
        j = next((j for j in order if np.array_equal(choices[j][1], piece)), None)
        if j is None:
            return None
        pieces.append(choices[j][1])
        if j != i:
            words.append(f"{names[i]} is {choices[j][0]}")
    if not words:
        return None
    more = f", and {len(words) - MOST} more" if len(words) > MOST else ""
    return ", ".join(words[:MOST]) + more, pieces


def _rows(got: Array, expected: Array) -> Iterator[Tried]:
    """Every row is one of the correct rows, or every column."""
    for axis, unit in ((0, "row"), (1, "column"))[: expected.ndim]:
        should = np.ascontiguousarray(np.moveaxis(expected, axis, 0))
        is_ = np.ascontiguousarray(np.moveaxis(got, axis, 0))
        places = {row.tobytes(): at for at, row in reversed(list(enumerate(should)))}
        found = [
            at if np.array_equal(row, should[at]) else places.get(row.tobytes())
            for at, row in enumerate(is_)
        ]
        if None not in found and expected.ndim == 2:
            order: NDArray[np.intp] = np.array(found, np.intp)
            words = described(order, unit)
            yield "weight-rearranged", words, np.moveaxis(should[order], 0, axis)


def _reread(got: Array, expected: Array, config: Config) -> Iterator[Tried]:
    """Memory that was read as if it had other axes, or these in another order."""
    if expected.ndim != 2:
        return
    for stored in (False, True):
        should = np.ascontiguousarray(expected.T if stored else expected)
        is_ = got.T if stored else got
        rows, columns = should.shape
        for parts in dict.fromkeys((len(QKV), config.n_head, len(QKV) * config.n_head)):
            shapes = {
                (parts, rows // parts, columns): rows % parts == 0,
                (rows, parts, columns // parts): columns % parts == 0,
                (parts, rows, columns // parts): columns % parts == 0,
            }
            for shape in [shape for shape, whole in shapes.items() if whole]:
                for axes in permutations(range(3)):
                    made = should.reshape(shape).transpose(axes)
                    if made.size == is_.size and np.array_equal(made.reshape(is_.shape), is_):
                        order = ", ".join(str(shape[axis]) for axis in axes)
                        words = f"memory of {list(should.shape)} read as {list(shape)}"
                        words += f", its axes in the order [{order}]"
                        whole = made.reshape(is_.shape)
                        yield "weight-rearranged", words, whole.T if stored else whole
                        return


def _between(got: Array, expected: Array) -> Iterator[Tried]:
    """Every so many rows are right, and those between lie on straight lines from one to the next:
    a table that was made longer."""
    if expected.ndim != 2:
        return
    rows = np.arange(len(expected))
    same = (got == expected).all(axis=-1)
    for apart in STRIDES:
        known = rows[::apart]
        if len(known) < 2 or not same[known].all() or same.all():
            continue
        low = np.minimum(rows // apart, len(known) - 2) * apart
        part = np.clip((rows - low) / apart, 0, 1)[:, None]
        wide = np.asarray(expected, np.float64)
        made = wide[low] * (1 - part) + wide[low + apart] * part
        words = f"every row between 0, {apart}, {2 * apart} … is interpolated from these"
        yield "weight-interpolated", words, np.where(same[:, None], expected, made)


def _beside(
    name: str, got: Array, expected: Array, config: Config, lookup: Callable[[str], Array]
) -> Iterator[Tried]:
    """Every column, or element of a vector, is one of this tensor or of its neighbours in the
    layer: what was cut out of several at once was cut elsewhere."""
    table = tensor_table(config)
    scope, _, leaf = name.rpartition("/")
    around = scope.rpartition("/")[0]
    beside = [n for n in table if n.startswith(f"{around}/") and n.endswith(f"/{leaf}")]
    columns: dict[tuple[str, int], Array] = {}
    for other in (name, *(n for n in beside if n != name)):
        value = expected if other == name else np.asarray(lookup(other), expected.dtype)
        columns |= {(other, at): column for at, column in enumerate(value.T)}
    places = {column.tobytes(): place for place, column in reversed(columns.items())}
    found = [
        (name, at) if np.array_equal(column, columns[name, at]) else places.get(column.tobytes())
        for at, column in enumerate(got.T)
    ]
    if None in found:
        return
    known = [place for place in found if place is not None]
    runs: list[tuple[int, str, int]] = []  # where it begins, and what with
    for at, (other, first) in enumerate(known):
        if not runs or (runs[-1][1], runs[-1][2] - runs[-1][0]) != (other, first - at):
            runs.append((at, other, first))
    if len(runs) * LEAST > len(known):
        return
    words = []
    for (at, other, first), end in zip(
        runs, [*(run[0] for run in runs[1:]), len(known)], strict=True
    ):
        if (other, first) != (name, at):
            words.append(f"{at}:{end} is {other}[{first}:{first + end - at}]")
    more = f", and {len(words) - MOST} more" if len(words) > MOST else ""
    made = np.stack([columns[place] for place in known], axis=-1)
    yield "part-equal", ", ".join(words[:MOST]) + more, made


def _outliers(got: Array, expected: Array) -> Iterator[Tried]:
    """The largest are zeros, or are cut off: of all, or of each row or column."""
    changed, size = got != expected, np.abs(expected)
    if changed.all() or not changed.any():
        return
    axes = {"": None, " of a column": 0, " of a row": 1} if expected.ndim == 2 else {"": None}
    for of, axis in axes.items():
        least = np.min(np.where(changed, size, np.inf), axis=axis, keepdims=True)
        share = f"{np.mean(size >= least):.2g} of all"
        words = f"the largest elements{of}, {share}, are "
        yield "weight-outliers", f"{words}zeros", np.where(size >= least, 0, expected)
        top = np.max(np.abs(got), axis=axis, keepdims=True)
        yield "weight-outliers", f"{words}cut off", np.clip(expected, -top, top)


def _scaled(got: Array, expected: Array) -> Iterator[Tried]:
    wide, should = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    by = wide - should
    if float(np.ptp(by)) <= 1e-3 * float(np.max(np.abs(by))):
        constant = float(np.median(by))
        yield "weight-scaled", f"{said(constant)} is added to every element", should + constant
    if expected.ndim != 2 or min(expected.shape) < SPREAD:
        return
    for axis, unit in ((1, "row"), (0, "column")):
        power = np.sum(should * should, axis=axis, keepdims=True)
        factor = np.sum(wide * should, axis=axis, keepdims=True) / np.where(power > 0, power, 1.0)
        other = np.flatnonzero(np.abs(factor.ravel() - 1) > 1e-6)
        if len(other) <= MOST:
            each = ", ".join(f"{unit} {at} × {said(float(factor.ravel()[at]))}" for at in other)
        else:
            each = f"times a number of each {unit}: {listed(map(said, factor.ravel()), 4)}"
        yield "weight-scaled", each, should * factor
    for axis, unit, across in ((0, "row", "column"), (1, "column", "row")):
        for size in GROUPS:
            if expected.shape[axis] % size == 0 and expected.shape[axis] > size:
                factor = _of_groups(wide, should, axis, size)
                words = f"times a number of each group of {size} {unit}s of a {across}"
                yield "weight-scaled", words, should * factor


def _of_groups(got: Array, should: Array, axis: int, size: int) -> Array:
    """One factor of each group along an axis, by least squares."""
    rows, columns = should.shape
    shape = (rows // size, size, columns) if axis == 0 else (rows, columns // size, size)
    within = 1 if axis == 0 else 2
    x, y = should.reshape(shape), got.reshape(shape)
    power = np.sum(x * x, axis=within, keepdims=True)
    factor = np.sum(x * y, axis=within, keepdims=True) / np.where(power > 0, power, 1.0)
    made: Array = np.broadcast_to(factor, shape).reshape(rows, columns)
    return made


def _grid(got: Array, expected: Array) -> Iterator[Tried]:
    """In few bits, with one scale for all, for each row or column, or for a group of rows."""
    distinct = len(np.unique(got))
    if distinct == got.size:
        return  # no two elements are alike, so that they lie on no grid
    wide = np.asarray(expected, np.float64)
    for bits in BITS:
        for levels in (2 ** (bits - 1) - 1, 2 ** (bits - 1)):
            for axis, unit in ((None, "for all"), (0, "for each column"), (1, "for each row")):
                top = np.max(np.abs(wide), axis=axis, keepdims=True)
                words = f"in {bits} bits, one scale {unit}"
                yield "weight-on-a-grid", words, _stepped(wide, top, levels)
                yield _other_scales(words, got, wide, top, levels, axis)
        for axis, unit in ((None, "for all"), (0, "for each column"), (1, "for each row")):
            words = f"in {bits} bits, one scale and one zero point {unit}"
            # As it is made: what the ends lose in float32 is more than the rounding of a number.
            for x in (expected.astype(np.float32), wide):
                low, step = _least_and_step(x, axis, 2**bits - 1)
                number: Array = np.rint((x - low) / step)
                made: Array = low + number * step
                yield "weight-on-a-grid", words, made
                off = float(np.rint(np.median((got - made) / step)))
                if 0 < abs(off) <= MOST:
                    by = f"the zero point {abs(off):.0f} too {'large' if off < 0 else 'small'}"
                    moved: Array = low + (number + off) * step
                    yield "weight-on-a-grid", f"{words}, {by}", moved
        for size, levels in product(GROUPS, (2 ** (bits - 1) - 1, 2 ** (bits - 1))):
            if len(wide) % size == 0 and len(wide) > size:
                yield from _in_groups(got, wide, bits, size, levels)


def _in_groups(got: Array, wide: Array, bits: int, size: int, levels: int) -> Iterator[Tried]:
    """One scale for each group of rows of a column, which may be that of another one."""
    groups = wide.reshape(-1, size, wide.shape[-1])
    top = np.max(np.abs(groups), axis=1, keepdims=True)
    words = f"in {bits} bits, one scale for each {size} rows of a column"
    yield "weight-on-a-grid", words, _stepped(groups, top, levels).reshape(wide.shape)
    name, words, made = _other_scales(words, got.reshape(groups.shape), groups, top, levels, 1)
    yield name, words, made.reshape(wide.shape)


def _least_and_step(x: Array, axis: int | None, levels: int) -> tuple[Array, Array]:
    """The least number, and the size of so many steps from there to the largest."""
    low, high = (f(x, axis=axis, keepdims=True) for f in (np.min, np.max))
    return low, np.where(high > low, (high - low) / x.dtype.type(levels), x.dtype.type(1))


def _stepped(x: Array, top: Array, levels: int) -> Array:
    step = np.where(top > 0, top / levels, 1.0)
    made: Array = np.clip(np.rint(x / step), -levels, levels) * step
    return made


def _other_scales(
    words: str, got: Array, x: Array, top: Array, levels: int, axis: int | None
) -> Tried:
    """On a grid, and multiplied by other scales than the grid was made with: by least squares."""
    step = np.where(top > 0, top / levels, 1.0)
    number: Array = np.clip(np.rint(x / step), -levels, levels)
    power = np.sum(number * number, axis=axis, keepdims=True)
    other: Array = np.sum(number * got, axis=axis, keepdims=True) / np.where(power > 0, power, 1.0)
    whose = ""
    for places, which in ((-1, "after"), (1, "before")):
        moved = [np.roll(step, places, at) for at in range(step.ndim) if step.shape[at] > 1]
        if any(np.allclose(other, one, rtol=1e-3) for one in moved):
            whose = f": that of the one {which} it"
    return "weight-on-a-grid", f"{words}, and another scale to multiply with{whose}", number * other


def _low_rank(got: Array, expected: Array) -> Iterator[Tried]:
    difference = np.asarray(got, np.float64) - np.asarray(expected, np.float64)
    apart = [int(np.any(difference != 0, axis=axis).sum()) for axis in (0, 1)]
    most = min(RANKS, min(apart) // SPREAD)
    if most < 1:
        return
    u, s, v = np.linalg.svd(difference, full_matrices=False)
    for rank in range(1, most + 1):
        words = f"differs by rank {rank} (an adapter that was added to it?)"
        yield "weight-low-rank", words, expected + (u[:, :rank] * s[:rank]) @ v[:rank]
