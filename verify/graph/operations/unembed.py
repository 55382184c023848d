"""The product with the head, by tiles of the vocabulary: the table is never widened whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.back import Array, Back, Pulled, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation, Summing
from gpt_verify.graph.operations import linear
from gpt_verify.graph.tiles import vocabulary_tiles
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops


def value(call: Call) -> Array:
    x_ND, head_VD = call.x, call.lookup(call.site.weights[0])
    logits_NV = np.empty((len(x_ND), len(head_VD)), call.dtype)
    for rows in vocabulary_tiles(1, *head_VD.shape):
        logits_NV[:, rows] = ops.unembed(x_ND, head_VD[rows].astype(call.dtype, copy=False))
    return logits_NV


def rounding(p: Precision, x: Measured, wte_VD: NDArray[np.floating]) -> Measured:
    """The product with wte transposed; any slice of the vocabulary will do for ``wte_VD``."""
    return linear.rounding(p, x, np.asarray(wte_VD, np.float64).T, 0.0, wte_VD.T)


def back(step: Step, d_TV: Array) -> Back:
    return Back((times_table(d_TV, step),), (Pulled(d_TV, step.x),))


def times_table(d_NV: Array, step: Step, squared: bool = False) -> Array:
    """Σ_v d_v · row v of the head, a tile at a time; ``squared``: of its squares."""
    head_VD = step.weights[step.config.head]
    total_ND = np.zeros((len(d_NV), step.config.n_embd), step.dtype)
    for rows in vocabulary_tiles(1, step.config.n_vocab, step.config.n_embd):
        tile_VD = head_VD[rows].astype(step.dtype, copy=False)
        total_ND += d_NV[:, rows] @ (tile_VD**2 if squared else tile_VD)
    return total_ND


def together(steps: Sequence[Step], ds: Sequence[Array], noise: Summing | None) -> list[Back]:
    """All rows in one product: the table is read once."""
    d_NV = np.concatenate(ds)
    x_ND = times_table(d_NV, steps[0])
    if noise is not None:
        x_ND = noise.summed(steps[0], x_ND, d_NV)
    parts = zip(np.split(x_ND, len(ds)), steps, ds, strict=True)
    return [Back((x,), (Pulled(d, s.x),)) for x, s, d in parts]


def effect(call: Call, direction: Direction) -> Array:
    return (call.x @ direction.right)[:, None] * direction.rows()


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), at.wide(0))


OPERATION = Operation(value, budget, back, effect, together, bridged=False, product=True)
