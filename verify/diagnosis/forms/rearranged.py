"""The right numbers in other places of the matrix that a product reads.

Fitted is the order in which its axes are read, of which there are few. Where an operation puts what
it has made in another order: outputs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from math import prod

import numpy as np

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form

#: Positions on which the orders of a matrix are tried first.
PROBED = 4


def weights(e: Evidence) -> Iterator[Fitted]:
    """The matrix of a product, its memory read in another order."""
    if e.site.operation != "linear" or not np.isfinite(e.got).all():
        return
    name = e.site.weights[0]
    w_io = e.call.w(name)
    x, got = e.call.x[:PROBED], e.got[:PROBED]
    if len(e.site.weights) > 1:
        got = got - e.call.w(e.site.weights[1])
    best = min(_orders(e, w_io), key=lambda pair: float(np.sum((x @ pair[0] - got) ** 2)))
    yield e.alone(e.with_tensors({name: best[0]}), best[1])


def _orders(e: Evidence, w_io: Array) -> Iterator[tuple[Array, str]]:
    rows, columns = w_io.shape
    yield w_io.reshape(columns, rows).T, "weight read as if contiguous"
    yield w_io.T.reshape(rows, columns), "weight read as if contiguous, [out, in] as [in, out]"
    yield w_io[::-1], "rows of the weight from the last to the first"
    yield w_io[:, ::-1], "columns of the weight from the last to the first"
    axes_of = [((f"{end}",), (size,)) for end, size in (("in", rows), ("out", columns))]
    inner = _factored(e, rows, "in")
    outer = _factored(e, columns, "out")
    for first in (axes_of[0], *inner):
        for second in (axes_of[1], *outer):
            names, sizes = (*first[0], *second[0]), (*first[1], *second[1])
            if len(names) == 2:
                continue
            split = w_io.reshape(sizes)
            for axes in permutations(range(len(sizes))):
                if axes == tuple(range(len(sizes))):
                    continue
                order = ", ".join(names[axis] for axis in axes)
                moved = split.transpose(axes)
                words = f"the weight's axes ({', '.join(names)}) read as if in the order ({order})"
                yield moved.reshape(rows, columns), words
                yield moved.reshape(columns, rows).T, f"{words}, transposed"


def _factored(
    e: Evidence, size: int, end: str
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    config = e.config
    if size == 3 * config.n_embd and config.keys.fused:
        sizes = (3, config.n_head, config.head_size)
        if prod(sizes) == size:
            yield ("part", "head", "channel"), sizes
            yield ("part", end), (3, config.n_embd)
    elif size % config.n_head == 0 and size // config.n_head > 1:
        yield (f"head of {end}", f"channel of {end}"), (config.n_head, size // config.n_head)


FORM = Form("weight-rearranged", "reads a matrix in another order", weights)
