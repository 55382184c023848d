"""Faults of RMS norm: what it computes, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.family_config import EPSILON, put
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.numerics.precision import BFLOAT16
from gpt_verify.reference.architecture import Norm
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array

#: Of the stream, of what a branch has made, and of queries and keys.
KINDS = ("ln_1", "ln_1_after", "ln_2", "ln_2_after", "attn.q_norm", "attn.k_norm", "ln_f")
SCOPES = tuple(kind.replace(".", "/") for kind in KINDS)
#: x [..., D], what its gain makes of it [D], and ε → what is normed.
Formula = Callable[[Array, Array, float], Array]


def by(gain_D: Array, norm: Norm) -> Array:
    """What a norm is multiplied with."""
    return 1 + gain_D if norm.plus_one else gain_D


def mean_square(x: Array) -> Array:
    found: Array = np.mean(np.square(x), axis=-1, keepdims=True)
    return found


def plain(x: Array, g_D: Array, eps: float) -> Array:
    value: Array = g_D * (x / np.sqrt(mean_square(x) + eps))
    return value


def act(formula: Formula, call: Call) -> Array:
    """Each head by itself, where the gain is of one head."""
    g_D, norm = call.own(0), call.config.keys.norm
    x = call.x.reshape(len(call.x), -1, len(g_D))
    return formula(x, by(g_D, norm), norm.epsilon).reshape(call.x.shape)


def _rms(config: Config) -> bool:
    return config.keys.norm.rms


def _fault(
    name: str,
    summary: str,
    formula: Formula,
    how: InTransformers,
    of: Callable[[Config], bool] = _rms,
    seen: str = "",
    quantising: bool = False,
    **more: Any,
) -> Fault:
    operations: dict[str, Override] = dict.fromkeys(KINDS, partial(act, formula))
    predict = AtSites(operations, quantising=quantising)
    return Fault(name, "rms", summary, seen, predict=predict, in_family=how, of=of, **more)


def _eps(eps: float, written: str, seen: str) -> Fault:
    return _fault(
        f"rms-eps-{written}",
        f"has ε = {eps:.3g} in its RMS norms, where the model has another one",
        lambda x, g_D, _: plain(x, g_D, eps),
        InTransformers(config=lambda config, _: put(config, EPSILON, eps)),
        lambda config: _rms(config) and config.keys.norm.epsilon != eps,
        seen,
    )


def inject(forward: Callable[..., Any], decoder: Decoder, layers: Sequence[int]) -> None:
    """``forward(norm, x)`` in place of every norm's own."""
    for norm in decoder.norms(SCOPES, layers):
        replace(norm, "forward", forward)


def torch_eps(norm: Any) -> float:
    """What the norms of transformers call it differs."""
    found: float = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return found


def _whole(
    name: str,
    summary: str,
    formula: Formula,
    in_torch: Callable[[Any, Any, float], Any],
    of: Callable[[Config], bool] = _rms,
    seen: str = "",
    **more: Any,
) -> Fault:
    """``in_torch(x, gain, ε)``."""

    def module(decoder: Decoder, layers: Sequence[int]) -> None:
        one = 1.0 if decoder.config.keys.norm.plus_one else 0.0

        def forward(norm: Any, x: Any) -> Any:
            return in_torch(x, norm.weight + one, torch_eps(norm))

        inject(forward, decoder, layers)

    return _fault(name, summary, formula, InTransformers(module=module), of, seen, **more)


def _layer_norm(x: Array, g_D: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    value: Array = g_D * centred / np.sqrt(mean_square(centred) + eps)
    return value


def _outside(x: Array, g_D: Array, eps: float) -> Array:
    value: Array = g_D * x / (np.sqrt(mean_square(x)) + eps)
    return value


def _narrow(x: Array) -> Array:
    return BFLOAT16.round(x).astype(x.dtype)


def _narrow_sum(x: Array, g_D: Array, eps: float) -> Array:
    square = _narrow(np.mean(_narrow(_narrow(x) ** 2), axis=-1, keepdims=True))
    value: Array = g_D * x / np.sqrt(square + eps)
    return value


def _torch_narrow_sum(x: Any, g: Any, eps: float) -> Any:
    narrow = x.to(torch.bfloat16)
    square = (narrow * narrow).to(x.dtype).mean(-1, keepdim=True).to(torch.bfloat16)
    return g * x * torch.rsqrt(square.to(x.dtype) + eps)


FAULTS = (
    _eps(1e-5, "1e-5", "a default that is not overwritten (rms_norm_eps of the file is not read)"),
    _eps(1e-6, "1e-6", "the default of transformers' LlamaConfig, in a model that has 1e-5"),
    _eps(1e-8, "1e-8", "the default of norms written after the paper"),
    _eps(2.0**-23, "finfo", "finfo(dtype).eps, which torch.nn.RMSNorm has where none is given"),
    _eps(1e-3, "1e-3", "the default of Keras' normalisation layers"),
    _whole(
        "rms-eps-outside",
        "adds ε to the root mean square, outside the root",
        _outside,
        lambda x, g, eps: g * (x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps)),
    ),
    _whole(
        "rms-layer-norm",
        "subtracts the mean before it norms, as layer norm does",
        _layer_norm,
        lambda x, g, eps: torch.nn.functional.layer_norm(x, x.shape[-1:], g, eps=eps),
        seen="nn.LayerNorm(bias=False) in the place of an RMS norm",
    ),
    _whole(
        "rms-gain-stored",
        "multiplies by g, where the model multiplies by 1 + g",
        lambda x, g_D, eps: plain(x, g_D - 1, eps),
        lambda x, g, eps: (g - 1) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)),
        lambda config: config.keys.norm.plus_one,
        "Gemma's weights in code for Llama",
    ),
    _whole(
        "rms-gain-plus-one",
        "multiplies by 1 + g, where the model multiplies by g",
        lambda x, g_D, eps: plain(x, 1 + g_D, eps),
        lambda x, g, eps: torch.addcmul(x, x, g) * torch.rsqrt(x.square().mean(-1, True) + eps),
        lambda config: _rms(config) and not config.keys.norm.plus_one,
        "Llama's weights in code for Gemma",
    ),
    _whole(
        "rms-missing-gain",
        "does not multiply by the gain of its RMS norms",
        lambda x, g_D, eps: plain(x, np.ones_like(g_D), eps),
        lambda x, g, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], eps=eps),
    ),
    _whole(
        "rms-sum",
        "divides by the root of the sum of squares, not of their mean",
        lambda x, g_D, eps: g_D * (x / np.sqrt(np.sum(np.square(x), -1, keepdims=True) + eps)),
        lambda x, g, eps: g * x / torch.sqrt((x * x).sum(-1, keepdim=True) + eps),
        seen="F.normalize in the place of a norm",
    ),
    _whole(
        "rms-squares-bfloat16",
        "squares, and keeps the mean of the squares, in bfloat16",
        _narrow_sum,
        _torch_narrow_sum,
        seen="a norm without the cast to float32",
        quantising=True,
    ),
)
