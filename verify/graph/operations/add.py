"""The residual sum."""

from __future__ import annotations

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision


def value(call: Call) -> Array:
    return call.x + call.values[call.site.inputs[1]]


def rounding(p: Precision, x: Measured, y: Measured) -> Measured:
    """One rounding."""
    value = x.value + y.value
    variance = (p.u * value) ** 2
    for term in (x, y):
        if term.budget is not None:
            variance += term.budget**2
    return measured(p, value, variance)


def back(step: Step, d: Array) -> Back:
    return Back((d, d))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), at.input(1))


OPERATION = Operation(value, budget, back, adds=True)
