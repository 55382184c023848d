"""x W + b."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.back import Array, Back, Pulled, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation, Summing
from gpt_verify.numerics.budgets import Floats, Measured, measured, sum_of_squares
from gpt_verify.numerics.parallel import both
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops


def value(call: Call) -> Array:
    return ops.linear(call.x, *map(call.own, range(len(call.site.weights))))


def rounding(
    p: Precision,
    x: Measured,
    w_io: Floats,
    b_o: Floats | float,
    narrow_io: NDArray[np.floating] | None = None,
) -> Measured:
    """A product with a matrix, x W + b.

    The error of a sum of n products is Σ δ_i s_i over its partial sums s_i. With terms of mean m
    and spread around it, s_i is i m plus a random walk, and the accumulator may begin with the
    bias instead of zero (BLAS: y ← A x + β y), so Σ s_i² ≤ n (Σ x² w² + (x W)² + b²), whatever the
    order of summation. Where both operands are rounded first, each term errs by itself, which is
    2 u² Σ x² w² more. Two roundings in the stored format follow, because a bias may be added to a
    product that has been stored.

    Args:
        p: the port's precision.
        x: [T, i], with its budget.
        w_io, b_o: W and b.
        narrow_io: W in float32, where it is at hand: the budget needs no more.
    """
    squared_io = w_io if narrow_io is None else narrow_io
    variance, product_To = both(
        lambda: sum_of_squares(x.value, squared_io),
        lambda: x.value @ w_io,
        x.value.size * w_io.shape[1],
    )
    value_To = product_To + b_o
    n = w_io.shape[0]
    operands_To = 2 * p.u_operand**2 * variance if p.u_operand else None
    variance += product_To**2
    variance += np.square(b_o)
    variance *= n * p.u_sum**2
    if operands_To is not None:
        variance += operands_To
    variance += p.u**2 * (product_To**2 + value_To**2)
    if x.budget is not None:
        variance += sum_of_squares(x.budget, squared_io)
    return measured(p, value_To, variance)


def back(step: Step, d_TO: Array) -> Back:
    return Back((d_TO @ step.own(0).T,), _pulled(step, d_TO))


def _pulled(step: Step, d_TO: Array) -> tuple[Pulled, ...]:
    return (Pulled(step.x, d_TO), Pulled(None, d_TO))[: len(step.site.weights)]


def together(steps: Sequence[Step], ds: Sequence[Array], noise: Summing | None) -> list[Back]:
    """All rows in one product: the matrix is read once."""
    x_NI = np.concatenate(ds) @ steps[0].own(0).T
    parts = zip(np.split(x_NI, len(ds)), steps, ds, strict=True)
    return [Back((x,), _pulled(s, d)) for x, s, d in parts]


def effect(call: Call, direction: Direction) -> Array:
    if direction.left is None:
        return np.broadcast_to(direction.right, (len(call.x), direction.right.size))
    return (call.x @ direction.rows())[:, None] * direction.right


def budget(p: Precision, at: At) -> Measured:
    bias = at.wide(1) if len(at.site.weights) > 1 else 0.0
    return rounding(p, at.input(0), at.wide(0), bias, at.narrow(0))


OPERATION = Operation(value, budget, back, effect, together, bridged=False, product=True)
