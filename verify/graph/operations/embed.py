"""A row of one table for the token, and a row of another for its position."""

from __future__ import annotations

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
    wte_VD, wpe_PD = map(call.lookup, call.site.weights)
    rows = call.tokens_T.reshape(call.rows, -1)
    return np.concatenate([ops.embed(row_T, wte_VD, wpe_PD, call.dtype) for row_T in rows])


def rounding(
    p: Precision, tokens_T: NDArray[np.integer], wte_VD: Floats, wpe_PD: Floats
) -> Measured:
    """One addition, one rounding."""
    value_TD = ops.embed(tokens_T, wte_VD, wpe_PD)
    return measured(p, value_TD, (p.u * value_TD) ** 2)


def back(step: Step, d_TD: Array) -> Back:
    return Back((), (Pulled(step.tokens_T, d_TD), Pulled(np.arange(len(d_TD)), d_TD)))


def effect(call: Call, direction: Direction) -> Array:
    places = np.tile(np.arange(len(call.tokens_T) // call.rows), call.rows)
    read = call.tokens_T if direction.tensor == call.site.weights[0] else places
    return direction.rows(read)[:, None] * direction.right


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.tokens_T, at.narrow(0), at.narrow(1))


OPERATION = Operation(value, budget, back, effect, looks_up=True)
