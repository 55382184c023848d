"""Faults of the activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.fault import Fault, of_operations
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call
from gpt_verify.reference.ops import SQRT_2_OVER_PI, Array


def tanh_gelu(x: Array, cubic: float = 0.044715, scale: float = SQRT_2_OVER_PI) -> Array:
    """The approximation with constants of one's own."""
    value: Array = 0.5 * x * (1 + np.tanh(scale * (x + cubic * x**3)))
    return value


def erf(x: Array) -> Array:
    """The error function, element by element, to float64's accuracy."""
    value: Array = np.vectorize(math.erf, otypes=[np.float64])(x)
    return value


def _in_torch(act: Callable[[Any], Any], model: Any, layers: Sequence[int]) -> None:
    for block in model.blocks(layers):
        block.mlp.act = act


def _torch_tanh_gelu(x: Any, cubic: float = 0.044715, scale: float = SQRT_2_OVER_PI) -> Any:
    return 0.5 * x * (1 + torch.tanh(scale * (x + cubic * x * x * x)))


def _gelu(
    name: str,
    summary: str,
    act: Callable[[Array], Array],
    in_torch: Callable[[Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    def changed(call: Call) -> Array:
        return act(call.x)

    inject = partial(_in_torch, in_torch)
    return of_operations(name, "gelu", summary, seen, {"mlp.act": changed}, inject, **more)


FAULTS = (
    _gelu(
        "gelu-erf",
        "computes the exact GELU, with erf, where GPT-2 has the tanh approximation",
        lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        lambda x: torch.nn.functional.gelu(x),
        "nn.GELU() in ports to PyTorch; transformers' activation 'gelu' instead of 'gelu_new'",
    ),
    _gelu(
        "gelu-sigmoid",
        "computes x sigmoid(1.702 x), the other approximation",
        lambda x: x / (1 + np.exp(-1.702 * x)),
        lambda x: x * torch.sigmoid(1.702 * x),
        "transformers' 'quick_gelu', made for CLIP",
    ),
    _gelu(
        "gelu-relu",
        "computes ReLU",
        lambda x: np.maximum(x, 0),
        lambda x: torch.relu(x),
    ),
    _gelu(
        "gelu-silu",
        "computes SiLU, x sigmoid(x)",
        lambda x: x / (1 + np.exp(-x)),
        lambda x: torch.nn.functional.silu(x),
    ),
    _gelu(
        "gelu-cubic-0.0447",
        "cuts the cubic constant 0.044715 to 0.0447",
        partial(tanh_gelu, cubic=0.0447),
        partial(_torch_tanh_gelu, cubic=0.0447),
    ),
    _gelu(
        "gelu-scale-0.79788",
        "cuts the constant √(2/π) to 0.79788",
        partial(tanh_gelu, scale=0.79788),
        partial(_torch_tanh_gelu, scale=0.79788),
    ),
    _gelu(
        "gelu-scale-0.8",
        "rounds the constant √(2/π) to 0.8",
        partial(tanh_gelu, scale=0.8),
        partial(_torch_tanh_gelu, scale=0.8),
    ),
    _gelu(
        "gelu-missing-cubic",
        "leaves the cubic term out",
        partial(tanh_gelu, cubic=0.0),
        partial(_torch_tanh_gelu, cubic=0.0),
    ),
    _gelu(
        "gelu-half-table",
        "looks the value up in a table over float16 numbers",
        lambda x: tanh_gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16),
        lambda x: _torch_tanh_gelu(x.half().to(x.dtype)).half().to(x.dtype),
        "ggml's GGML_GELU_FP16 table (gpt-2 example of ggml, 2022)",
        quantising=True,
    ),
)
