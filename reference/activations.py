"""What stands between the matrices of an MLP, in families that have no GELU with tanh there."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpt_verify.reference.architecture import Activation
from gpt_verify.reference.ops import Array, gelu

#: Megatron-LM ``megatron/model/fused_bias_gelu.py``, ``bias_gelu``: with it BLOOM was trained.
BLOOM_ROOT = 0.79788456
#: gpt-oss ``gpt_oss/torch/model.py``, ``swiglu``: its slope and its limit.
CLAMPED_SLOPE, CLAMP = 1.702, 7.0

#: erf is expanded around the nearest of nodes so far apart, from 0 to where it is 1 in float64.
_SPACING, _LAST, _ORDER = 1 / 32, 6.0, 9


def _expansions() -> Array:
    """erf^(n)(a) / n! of each node a, [node, n]. Differentiated, erf is (2/√π) exp(-a²), and each
    further derivative of that is its product with a Hermite polynomial (Abramowitz and Stegun
    1964, 7.1.19): H_{n+1} = 2 a H_n - 2 n H_{n-1}, with alternating signs."""
    nodes = np.arange(0.0, _LAST + _SPACING, _SPACING)
    columns = [np.array([math.erf(a) for a in nodes])]
    bell = 2 / math.sqrt(math.pi) * np.exp(-nodes * nodes)
    before, hermite = np.zeros_like(nodes), np.ones_like(nodes)
    for n in range(_ORDER):
        columns.append((-1) ** n * hermite * bell / math.factorial(n + 1))
        before, hermite = hermite, 2 * nodes * hermite - 2 * n * before
    return np.stack(columns, axis=-1)


_EXPANSIONS = _expansions()


def erf(x: Array) -> Array:
    """2/√π ∫₀ˣ exp(-t²) dt (Abramowitz and Stegun 1964, 7.1.1), to within rounding."""
    size = np.minimum(np.abs(x), _LAST)
    # Not a number has no node of its own, and stays what it is.
    node = np.rint(np.nan_to_num(size) / _SPACING).astype(np.intp)
    h = size - (node * _SPACING).astype(x.dtype)
    terms = _EXPANSIONS.astype(x.dtype)
    total: Array = terms[node, _ORDER]
    for n in range(_ORDER - 1, -1, -1):
        total = total * h + terms[node, n]
    return np.copysign(np.minimum(total, 1), x)


def gelu_exact(x: Array) -> Array:
    """x Φ(x) = 0.5 x (1 + erf(x/√2)): Hendrycks and Gimpel 2016, section 2."""
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def gelu_bloom(x: Array) -> Array:
    """GELU with tanh and √(2/π) in eight digits."""
    return gelu(x, BLOOM_ROOT)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow: of exp(-|x|) on either side."""
    small = np.exp(-np.abs(x))
    one = np.ones_like(small)
    found: Array = np.where(x < 0, small, one) / (one + small)
    return found


def silu(x: Array) -> Array:
    """x σ(x): Hendrycks and Gimpel 2016, section 2, there SiLU; Ramachandran et al. 2017, Swish."""
    return x * sigmoid(x)


def relu(x: Array) -> Array:
    """max(x, 0): Zhang et al. 2022 (OPT), section 2.1."""
    return np.maximum(x, np.zeros_like(x))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_exact": gelu_exact,
    "gelu_bloom": gelu_bloom,
    "silu": silu,
    "relu": relu,
}


def gated(kind: Activation, gate_TF: Array, up_TF: Array) -> Array:
    """act(x Wg) · (x Wu): Shazeer 2020, equation 6. gpt-oss limits both and adds 1 to the second:
    (up + 1) · gate σ(1.702 gate), ``gpt_oss/torch/model.py``, ``swiglu``."""
    if kind == "swish_clamped":
        gate_TF = np.minimum(gate_TF, CLAMP)
        up_TF = np.clip(up_TF, -CLAMP, CLAMP)
        return (up_TF + 1.0) * (gate_TF * sigmoid(CLAMPED_SLOPE * gate_TF))
    return ACTIVATIONS[kind](gate_TF) * up_TF
