"""x σ(x)."""

from __future__ import annotations

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import activations

#: Largest slope of SiLU, near 2.4.
STEEPEST = 1.1


def value(call: Call) -> Array:
    return activations.silu(call.x)


def rounding(p: Precision, x: Measured, factor: float = 1.0) -> Measured:
    """x σ(c x), σ = 1 / (1 + exp(-x)): c x is rounded where c is not 1, the exponential errs by
    some units, which count for as much of σ as 1 - σ; then the sum, the quotient and the product.
    Where σ itself is stored, what is too small for the format is lost."""
    sigmoid = activations.sigmoid(factor * x.value)
    value = x.value * sigmoid
    inner2 = (p.exp_ulp * p.u_sum) ** 2 + (p.u * factor * x.value) ** 2 * (factor != 1.0)
    relative2 = (1 - sigmoid) ** 2 * inner2 + 2 * p.u_sum**2 + 2 * p.u**2
    variance = value**2 * relative2 + (p.tiny * x.value) ** 2
    if x.budget is not None:
        variance += (STEEPEST * x.budget) ** 2
    return measured(p, value, variance)


def slope(x: Array, factor: float = 1.0) -> Array:
    """d x σ(c x) / d x."""
    sigmoid = activations.sigmoid(factor * x)
    return sigmoid * (1 + factor * x * (1 - sigmoid))


def back(step: Step, d: Array) -> Back:
    return Back((d * slope(step.x),))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0))


OPERATION = Operation(value, budget, back)
