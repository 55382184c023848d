"""max(x, 0)."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import activations


def value(call: Call) -> Array:
    return activations.relu(call.x)


def rounding(p: Precision, x: Measured) -> Measured:
    """Nothing is rounded."""
    value = activations.relu(x.value)
    return measured(p, value, np.zeros_like(value) if x.budget is None else x.budget**2)


def slope(x: Array) -> Array:
    """1 above zero; at zero, 0."""
    return np.where(x > 0, np.ones_like(x), np.zeros_like(x))


def back(step: Step, d: Array) -> Back:
    return Back((d * slope(step.x),))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0))


OPERATION = Operation(value, budget, back)
