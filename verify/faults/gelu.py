"""Faults of the activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers, of_operations
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call
from gpt_verify.reference.architecture import Activation
from gpt_verify.reference.config import Config
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


def _changed(act: Callable[[Array], Array], call: Call) -> Array:
    made = act(call.x)
    return made * call.values[call.site.inputs[1]] if call.config.keys.gated else made


def _plain(config: Config) -> bool:
    """What the activation makes is a site: no limits beside it, as in gpt-oss, and no experts."""
    return config.keys.activation != "swish_clamped" and config.keys.experts is None


def _is(kinds: tuple[Activation, ...], config: Config) -> bool:
    return config.keys.activation in kinds and _plain(config)


def _is_not(kinds: tuple[Activation, ...], config: Config) -> bool:
    return config.keys.activation not in kinds and _plain(config)


def _in_family(act: Callable[[Any], Any], decoder: Decoder, layers: Sequence[int]) -> None:
    """transformers keeps it beside the matrix that reads what it makes, as a module."""
    scope = "mlp/down" if decoder.config.keys.gated else "mlp/c_proj"
    for layer in layers:
        holder = decoder.around(scope, layer)
        names = [
            name
            for name in ("act_fn", "act", "activation_fn", "gelu_impl")
            if hasattr(holder, name)
        ]
        replace(getattr(holder, names[0]), "forward", lambda _, x: act(x))


def _gelu(
    name: str,
    summary: str,
    act: Callable[[Array], Array],
    in_torch: Callable[[Any], Any],
    seen: str = "",
    right: tuple[Activation, ...] = (),
    only: tuple[Activation, ...] = (),
    **more: Any,
) -> Fault:
    """Another activation, of the gate where there is one.

    Args:
        right: of these activations it is none, or none that can be told.
        only: it is one of these alone; of all others where empty.
    """
    of = partial(_is, only) if only else partial(_is_not, right)
    operations = {"mlp.act": partial(_changed, act)}
    more["in_family"] = InTransformers(module=partial(_in_family, in_torch))
    inject = partial(_in_torch, in_torch)
    return of_operations(name, "gelu", summary, seen, operations, inject, of=of, **more)


FAULTS = (
    _gelu(
        "gelu-erf",
        "computes the exact GELU, with erf",
        lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        lambda x: torch.nn.functional.gelu(x),
        "nn.GELU() in ports to PyTorch; transformers' activation 'gelu' instead of 'gelu_new'",
        right=("gelu_exact",),
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
        right=("relu",),
    ),
    _gelu(
        "gelu-silu",
        "computes SiLU, x sigmoid(x)",
        lambda x: x / (1 + np.exp(-x)),
        lambda x: torch.nn.functional.silu(x),
        right=("silu",),
    ),
    _gelu(
        "gelu-cubic-0.0447",
        "cuts the cubic constant 0.044715 to 0.0447",
        partial(tanh_gelu, cubic=0.0447),
        partial(_torch_tanh_gelu, cubic=0.0447),
        only=("gelu", "gelu_bloom"),
    ),
    _gelu(
        "gelu-scale-0.79788",
        "cuts the constant √(2/π) to 0.79788",
        partial(tanh_gelu, scale=0.79788),
        partial(_torch_tanh_gelu, scale=0.79788),
        only=("gelu", "gelu_bloom"),
    ),
    _gelu(
        "gelu-scale-0.8",
        "rounds the constant √(2/π) to 0.8",
        partial(tanh_gelu, scale=0.8),
        partial(_torch_tanh_gelu, scale=0.8),
        only=("gelu", "gelu_bloom"),
    ),
    _gelu(
        "gelu-missing-cubic",
        "leaves the cubic term out",
        partial(tanh_gelu, cubic=0.0),
        partial(_torch_tanh_gelu, cubic=0.0),
        only=("gelu", "gelu_bloom"),
    ),
    _gelu(
        "gelu-half-table",
        "looks the value up in a table over float16 numbers",
        lambda x: tanh_gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16),
        lambda x: _torch_tanh_gelu(x.half().to(x.dtype)).half().to(x.dtype),
        "ggml's GGML_GELU_FP16 table (gpt-2 example of ggml, 2022)",
        only=("gelu", "gelu_bloom"),
        quantising=True,
    ),
    Fault(
        "gelu-tanh",
        "gelu",
        "computes GELU by its approximation with tanh",
        "hidden_act that is not read, in code for Gemma",
        predict=AtSites({"mlp.act": partial(_changed, tanh_gelu)}),
        in_family=InTransformers(module=partial(_in_family, _torch_tanh_gelu)),
        of=partial(_is_not, ("gelu", "gelu_bloom")),
    ),
)
