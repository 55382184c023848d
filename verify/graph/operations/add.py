"""The residual sum."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision


def value(call: Call) -> Array:
    total: Array = call.x + call.values[call.site.inputs[1]]
    for more in call.site.inputs[2:]:
        total = total + call.values[more]
    return total


def rounding(p: Precision, x: Measured, y: Measured, third: Measured | None = None) -> Measured:
    """A sum of two is rounded once; one of three once more, when the first two have been added.

    Args:
        p: the port's precision.
        x, y, third: the terms, [T, D] each, with their budgets.
    """
    value = x.value + y.value
    terms = (x, y) if third is None else (x, y, third)
    variance = (p.u * value) ** 2
    if third is not None:
        pairs = (value, x.value + third.value, y.value + third.value)
        largest = np.maximum.reduce([np.abs(pair) for pair in pairs])
        value = value + third.value
        variance = p.u**2 * (value**2 + largest**2)
    for term in terms:
        if term.budget is not None:
            variance += term.budget**2
    return measured(p, value, variance)


def back(step: Step, d: Array) -> Back:
    return Back((d,) * len(step.site.inputs))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, *(at.input(i) for i in range(len(at.site.inputs))))


OPERATION = Operation(value, budget, back, adds=True)
