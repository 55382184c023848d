"""x Φ(x): GELU with erf."""

from __future__ import annotations

import math

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import FUNCTION_ULP, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.activations import erf, gelu_exact

#: Largest slope of GELU, √2 from 0: Φ(√2) + √2 φ(√2).
STEEPEST = 1.13


def value(call: Call) -> Array:
    return gelu_exact(call.x)


def rounding(p: Precision, x: Measured) -> Measured:
    """First-order running error through 0.5 x (1 + erf(x/√2)).

    As for GELU with tanh, 1 + erf cancels well below zero: an absolute error of a few u remains.
    Near zero too: erf is computed there as 1 less an exponential times a polynomial (Abramowitz and
    Stegun 7.1.26, to 1.5e-7, in torch's vectorised kernels, ``aten/src/ATen/cpu/vec``), whose error
    is one of 1 and not of erf.
    """
    value, z = gelu_exact(x.value), x.value * math.sqrt(0.5)
    found = erf(z)
    inner = p.u * z * (2 / math.sqrt(math.pi)) * np.exp(-z * z)
    function2 = (FUNCTION_ULP * p.u_sum) ** 2 + (p.u * found) ** 2
    one_plus_error2 = inner**2 + function2 + (p.u * (1 + found)) ** 2
    variance = (0.5 * x.value) ** 2 * one_plus_error2 + 2 * (p.u * value) ** 2
    if x.budget is not None:
        variance += (STEEPEST * x.budget) ** 2
    return measured(p, value, variance)


def slope(x: Array) -> Array:
    """Φ(x) + x φ(x)."""
    bell = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    found: Array = 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * bell
    return found


def back(step: Step, d: Array) -> Back:
    return Back((d * slope(step.x),))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0))


OPERATION = Operation(value, budget, back)
