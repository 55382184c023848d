"""GELU with tanh, as GPT-2 has it."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.numerics.budgets import FUNCTION_ULP, Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import ops
from gpt_verify.reference.activations import BLOOM_ROOT
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import GELU_CUBIC, SQRT_2_OVER_PI


def root_of(config: Config) -> float:
    """The number that the model takes for √(2/π)."""
    return BLOOM_ROOT if config.keys.activation == "gelu_bloom" else SQRT_2_OVER_PI


def value(call: Call) -> Array:
    return ops.gelu(call.x, root_of(call.config))


def rounding(p: Precision, x: Measured, root: float = SQRT_2_OVER_PI) -> Measured:
    """First-order running error through 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).

    For x well below zero 1 + tanh cancels: an absolute error of a few u remains, multiplied by x.
    """
    value = ops.gelu(x.value, root)
    cubic = ops.GELU_CUBIC * (x.value * x.value * x.value)
    inner = root * (x.value + cubic)
    tanh = np.tanh(inner)
    # x³ is two products or one pow, then the constant: four roundings. The sum and √(2/π): two.
    inner_error2 = p.u**2 * ((4 * root * cubic) ** 2 + 2 * inner**2)
    function = FUNCTION_ULP * p.u_sum + p.u
    tanh_error2 = ((1 - tanh**2) ** 2) * inner_error2 + (function * tanh) ** 2
    one_plus_error2 = tanh_error2 + (p.u * (1 + tanh)) ** 2
    variance = (0.5 * x.value) ** 2 * one_plus_error2 + 2 * (p.u * value) ** 2
    if x.budget is not None:
        # |GELU'| ≤ 1.13 everywhere.
        variance += (1.13 * x.budget) ** 2
    return measured(p, value, variance)


def slope(x: Array, cubic: float = 3.0, root: float = SQRT_2_OVER_PI) -> Array:
    """d gelu / d x; ``cubic`` is the exponent that the inner derivative brings down."""
    tanh = np.tanh(root * (x + GELU_CUBIC * x**3))
    inner = root * (1 + cubic * GELU_CUBIC * x**2)
    found: Array = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * inner
    return found


def back(step: Step, d: Array) -> Back:
    return Back((d * slope(step.x, root=root_of(step.config)),))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), root_of(at.config))


OPERATION = Operation(value, budget, back)
