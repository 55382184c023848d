"""act(gate) · up, and gpt-oss's gate with its limits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.graph.operations import gelu, gelu_exact, relu, silu
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.activations import (
    ACTIVATIONS,
    BLOOM_ROOT,
    CLAMP,
    CLAMPED_SLOPE,
    gated,
)
from gpt_verify.reference.architecture import Activation

_ROUNDING: dict[Activation, Callable[[Precision, Measured], Measured]] = {
    "gelu": gelu.rounding,
    "gelu_bloom": partial(gelu.rounding, root=BLOOM_ROOT),
    "gelu_exact": gelu_exact.rounding,
    "silu": silu.rounding,
    "relu": relu.rounding,
    "swish_clamped": partial(silu.rounding, factor=CLAMPED_SLOPE),
}
_SLOPE: dict[Activation, Callable[[Array], Array]] = {
    "gelu": gelu.slope,
    "gelu_bloom": partial(gelu.slope, root=BLOOM_ROOT),
    "gelu_exact": gelu_exact.slope,
    "silu": silu.slope,
    "relu": relu.slope,
    "swish_clamped": partial(silu.slope, factor=CLAMPED_SLOPE),
}


def value(call: Call) -> Array:
    return gated(call.config.keys.activation, call.x, call.values[call.site.inputs[1]])


def rounding(p: Precision, kind: Activation, gate: Measured, up: Measured) -> Measured:
    """The budget has the activation's error, the other factor's, and one rounding of the product.
    Limits are exact; adding 1 is rounded.

    Args:
        p: the port's precision.
        kind: the activation.
        gate, up: the two factors before that, [N, F] each, with their budgets.
    """
    own2 = p.u**2
    if kind == "swish_clamped":
        gate = Measured(np.minimum(gate.value, CLAMP), gate.budget)
        up = Measured(np.clip(up.value, -CLAMP, CLAMP) + 1, up.budget)
        own2 = 2 * p.u**2
    act = _ROUNDING[kind](p, gate)
    assert act.budget is not None, "an operation's result has a budget"
    value = act.value * up.value
    variance = (act.budget * up.value) ** 2 + own2 * value**2
    if up.budget is not None:
        variance += (act.value * up.budget) ** 2
    return measured(p, value, variance)


def slopes(kind: Activation, gate: Array, up: Array) -> tuple[Array, Array]:
    """The derivatives by gate and up."""
    if kind == "swish_clamped":
        low, inside = np.minimum(gate, CLAMP), np.abs(up) < CLAMP
        by_gate = (gate < CLAMP) * _SLOPE[kind](low) * (np.clip(up, -CLAMP, CLAMP) + 1)
        return by_gate, inside * gated(kind, gate, np.zeros_like(up))
    return _SLOPE[kind](gate) * up, ACTIVATIONS[kind](gate)


def back(step: Step, d: Array) -> Back:
    gate, up = (step.values[name] for name in step.site.inputs)
    by_gate, by_up = slopes(step.config.keys.activation, gate, up)
    return Back((d * by_gate, d * by_up))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.config.keys.activation, at.input(0), at.input(1))


OPERATION = Operation(value, budget, back)
