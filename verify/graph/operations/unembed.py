"""The product with the head, by tiles of the vocabulary: the table is never widened whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.back import Array, Back, Pulled, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation, Summing
from gpt_verify.graph.operations import linear, soft_cap
from gpt_verify.graph.tiles import EVERY, vocabulary_tiles
from gpt_verify.numerics.budgets import Floats, Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config


def value(call: Call) -> Array:
    x_ND, head = call.x, Head(call.config, call.lookup)
    logits_NV = np.empty((len(x_ND), call.config.n_vocab), call.dtype)
    for rows in vocabulary_tiles(1, call.config.n_vocab, call.config.n_embd):
        logits_NV[:, rows] = head.logits(x_ND, rows)
    return logits_NV


Ids = NDArray[np.integer]


class Head:
    """The last product, any slice of the vocabulary at a time, with its bias and its cap.

    Args:
        config: sizes.
        lookup: checkpoint name → tensor.
    """

    def __init__(self, config: Config, lookup: Callable[[str], NDArray[np.floating]]) -> None:
        self._table = lookup(config.head)
        self._bias = lookup("lm_head/b") if config.keys.bias_head else None
        self._cap = config.keys.cap_logits

    def logits(self, x_ND: Array, rows: slice | NDArray[np.integer]) -> Array:
        """The logits of these tokens, in the arithmetic of x."""
        made: Array = ops.unembed(x_ND, self._table[rows].astype(x_ND.dtype, copy=False))
        if self._bias is not None:
            made = made + self._bias[rows].astype(x_ND.dtype)
        return made if self._cap is None else ops.soft_cap(made, self._cap)

    def rounding(self, p: Precision, x: Measured, rows: slice | Ids = EVERY) -> Measured:
        """The same, with the budgets; also of some tokens, by their ids."""
        bias = 0.0 if self._bias is None else np.asarray(self._bias[rows], np.float64)
        made = rounding(p, x, self._table[rows], bias)
        return made if self._cap is None else soft_cap.rounding(p, made, self._cap)


def rounding(
    p: Precision, x: Measured, wte_VD: NDArray[np.floating], bias_V: Floats | float = 0.0
) -> Measured:
    """The product with wte transposed; any slice of the vocabulary will do for ``wte_VD``.

    Args:
        p: the port's precision.
        x: the state that the head reads, [T, D], with its budget.
        wte_VD: rows of the head's matrix.
        bias_V: its bias; 0 for none.
    """
    return linear.rounding(p, x, np.asarray(wte_VD, np.float64).T, bias_V, wte_VD.T)


def _before_cap(step: Step, d_TV: Array) -> Array:
    """The derivative by what was capped."""
    cap = step.config.keys.cap_logits
    return d_TV if cap is None else d_TV * (1 - (step.value / cap) ** 2)


def _pulled(step: Step, d_TV: Array) -> tuple[Pulled, ...]:
    return (Pulled(d_TV, step.x), Pulled(None, d_TV))[: len(step.site.weights)]


def back(step: Step, d_TV: Array) -> Back:
    d_TV = _before_cap(step, d_TV)
    return Back((times_table(d_TV, step),), _pulled(step, d_TV))


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
    ds = [_before_cap(step, d) for step, d in zip(steps, ds, strict=True)]
    d_NV = np.concatenate(ds)
    x_ND = times_table(d_NV, steps[0])
    if noise is not None:
        x_ND = noise.summed(steps[0], x_ND, d_NV)
    parts = zip(np.split(x_ND, len(ds)), steps, ds, strict=True)
    return [Back((x,), _pulled(s, d)) for x, s, d in parts]


def effect(call: Call, direction: Direction) -> Array:
    if direction.left is None:
        made = np.broadcast_to(direction.right, (len(call.x), direction.right.size))
    else:
        made = (call.x @ direction.right)[:, None] * direction.rows()
    cap = call.config.keys.cap_logits
    return made if cap is None else made * (1 - (value(call) / cap) ** 2)


def budget(p: Precision, at: At) -> Measured:
    names = dict(zip(at.site.weights, range(len(at.site.weights)), strict=True))
    return Head(at.config, lambda name: at.wide(names[name])).rounding(p, at.input(0))


OPERATION = Operation(
    value, budget, back, effect, together, bridged=False, product=True, by_vocabulary=True
)
