"""c tanh(x / c)."""

from __future__ import annotations

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import FUNCTION_ULP, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config


def cap_of(config: Config) -> float:
    assert config.keys.cap is not None, "a model whose scores are capped"
    return config.keys.cap


def value(call: Call) -> Array:
    return ops.soft_cap(call.x, cap_of(call.config))


def rounding(p: Precision, x: Measured, cap: float) -> Measured:
    """The quotient, the hyperbolic tangent and the product are stored one after the other."""
    value = ops.soft_cap(x.value, cap)
    slope = 1 - (value / cap) ** 2
    function = FUNCTION_ULP * p.u_sum + p.u
    variance = (p.u * slope * x.value) ** 2 + (function**2 + p.u**2) * value**2
    if x.budget is not None:
        # Where it is steepest within reach of the error, it has the slope 1.
        variance += x.budget**2
    return measured(p, value, variance)


def back(step: Step, d: Array) -> Back:
    slope: Array = 1 - (step.value / cap_of(step.config)) ** 2
    return Back((d * slope,))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0, at.heads), cap_of(at.config))


OPERATION = Operation(value, budget, back, by_head=True, masked=True)
