"""A row of one table for the token, and a row of another for its position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.back import Array, Back, Pulled, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import Floats, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops


def value(call: Call) -> Array:
    wte_VD, wpe_PD = _tables([call.lookup(name) for name in call.site.weights])
    more = (call.dtype, call.config.keys.table_offset, call.config.embed_scale)
    rows = call.tokens_T.reshape(call.rows, -1)
    return np.concatenate([ops.embed(row_T, wte_VD, wpe_PD, *more) for row_T in rows])


def _tables(given: Sequence[Array]) -> tuple[Array, Array | None]:
    """That of the tokens, and that of the positions where there is one."""
    return given[0], given[1] if len(given) > 1 else None


def rounding(
    p: Precision,
    tokens_T: NDArray[np.integer],
    wte_VD: Floats,
    wpe_PD: Floats | None,
    offset: int = 0,
    scale: float | None = None,
) -> Measured:
    """One addition is rounded once. A scale is rounded to the format, and what it has multiplied;
    what is neither scaled nor added to is exact.

    Args:
        p: the port's precision.
        tokens_T: ids, int[T].
        wte_VD: the table of the tokens.
        wpe_PD: the table of the positions; None where the model has none.
        offset: the row of position 0.
        scale: what the rows of the tokens are multiplied with; None for nothing.
    """
    value_TD = ops.embed(tokens_T, wte_VD, wpe_PD, offset=offset, scale=scale)
    variance = (p.u * value_TD) ** 2 if wpe_PD is not None else np.zeros_like(value_TD)
    if scale is not None:
        variance += 2 * (p.u * ops.embed(tokens_T, wte_VD, None, scale=scale)) ** 2
    return measured(p, value_TD, variance)


def back(step: Step, d_TD: Array) -> Back:
    keys, scale = step.config.keys, step.config.embed_scale
    places = np.arange(len(d_TD)) + keys.table_offset
    token = Pulled(step.tokens_T, d_TD if scale is None else scale * d_TD)
    return Back((), (token, Pulled(places, d_TD))[: len(step.site.weights)])


def effect(call: Call, direction: Direction) -> Array:
    keys, scale = call.config.keys, call.config.embed_scale
    places = np.tile(np.arange(len(call.tokens_T) // call.rows), call.rows) + keys.table_offset
    if direction.tensor != call.site.weights[0]:
        return direction.rows(places)[:, None] * direction.right
    return (scale or 1.0) * direction.rows(call.tokens_T)[:, None] * direction.right


def budget(p: Precision, at: At) -> Measured:
    tables = _tables([at.narrow(i) for i in range(len(at.site.weights))])
    more = (at.config.keys.table_offset, at.config.embed_scale)
    return rounding(p, at.tokens_T, *tables, *more)


OPERATION = Operation(value, budget, back, effect, looks_up=True)
