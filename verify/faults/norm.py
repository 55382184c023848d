"""Faults of layer norm: what it computes. Where it stands in the block: ``norm_place.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import Fault, InTransformers, of_operations
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import LAYER_NORM_EPSILON as EPS
from gpt_verify.reference.ops import Array

#: x [T, D], gain [D], bias [D] → the normalised stream, [T, D].
Formula = Callable[[Array, Array, Array], Array]

_EVERY = ("ln_1", "ln_2", "ln_f")


def _centred(x_TD: Array) -> Array:
    centred_TD: Array = x_TD - x_TD.mean(axis=-1, keepdims=True)
    return centred_TD


def _variance(x_TD: Array, lost: int = 0) -> Array:
    """[T, 1]; ``lost`` degrees of freedom are taken off the divisor."""
    width = x_TD.shape[-1]
    if lost >= width:  # as torch has it, and without NumPy's warning of no degrees of freedom
        return np.full_like(x_TD[..., :1], np.nan)
    variance_T1: Array = np.var(x_TD, axis=-1, keepdims=True, ddof=lost)
    return variance_T1


def _with_eps(x_TD: Array, g_D: Array, b_D: Array, eps: float) -> Array:
    value: Array = g_D * _centred(x_TD) / np.sqrt(_variance(x_TD) + eps) + b_D
    return value


def _outside(x_TD: Array, g_D: Array, b_D: Array, eps: float = EPS, lost: int = 0) -> Array:
    value: Array = g_D * _centred(x_TD) / (np.sqrt(_variance(x_TD, lost)) + eps) + b_D
    return value


def _unbiased(x_TD: Array, g_D: Array, b_D: Array) -> Array:
    value: Array = g_D * _centred(x_TD) / np.sqrt(_variance(x_TD, 1) + EPS) + b_D
    return value


def _rms(x_TD: Array, g_D: Array, b_D: Array | float) -> Array:
    mean_square_T1 = np.mean(np.square(x_TD), axis=-1, keepdims=True)
    value: Array = g_D * x_TD / np.sqrt(mean_square_T1 + EPS) + b_D
    return value


def _second_moment(x_TD: Array, g_D: Array, b_D: Array) -> Array:
    mean_square_T1 = np.mean(np.square(x_TD), axis=-1, keepdims=True)
    value: Array = g_D * _centred(x_TD) / np.sqrt(mean_square_T1 + EPS) + b_D
    return value


def _over(axes: tuple[int, ...], x_TD: Array, g_D: Array, b_D: Array) -> Array:
    """Mean and variance over these axes of [T, D]."""
    centred_TD = x_TD - x_TD.mean(axis=axes, keepdims=True)
    value: Array = g_D * centred_TD / np.sqrt(x_TD.var(axis=axes, keepdims=True) + EPS) + b_D
    return value


def _torch_normalise(norm: Any, x: Any, change: Callable[[Any, Any], Any]) -> Any:
    """``change(centred, x)`` in place of the division by the root of the variance."""
    return change(x - x.mean(-1, keepdim=True), x)


def _torch_over(norm: Any, x: Any, axes: tuple[int, ...]) -> Any:
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + norm.eps)


def inject_norms(
    method: str, function: Callable[..., Any], kinds: Sequence[str], model: Any, layers: Any
) -> None:
    for norm in model.norms(layers, kinds):
        replace(norm, method, function)


def _inject_eps(eps: float, model: Any, layers: Sequence[int]) -> None:
    for norm in model.norms(layers):
        norm.eps = eps


class _Own:
    """A norm of transformers, as the catalogue's own model has its norms."""

    def __init__(self, norm: Any) -> None:
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def normalise(self, x: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + self.eps)


def _in_family(in_torch: Callable[[Any, Any], Any], kinds: Sequence[str]) -> InTransformers:
    def module(decoder: Decoder, layers: Sequence[int]) -> None:
        for norm in decoder.norms(kinds, layers):
            replace(norm, "forward", lambda norm, x: in_torch(_Own(norm), x))

    return InTransformers(module=module, layered=tuple(kinds) != ("ln_f",))


def _of_layer_norms(config: Config) -> bool:
    """The model has these, with GPT-2's ε."""
    return not config.keys.norm.rms and config.keys.norm.epsilon == EPS


def _act(formula: Formula) -> Override:
    def changed(call: Call) -> Array:
        return formula(call.x, call.own(0), call.own(1))

    return changed


def _eps(name: str, summary: str, eps: float, seen: str = "", **more: Any) -> Fault:
    act = _act(partial(_with_eps, eps=eps))
    operations = dict.fromkeys(_EVERY, act)
    more = {"of": _of_layer_norms, "in_family": InTransformers(module=_eps_in_family(eps)), **more}
    return of_operations(name, "norm", summary, seen, operations, partial(_inject_eps, eps), **more)


def _eps_in_family(eps: float) -> Callable[[Decoder, Sequence[int]], None]:
    def module(decoder: Decoder, layers: Sequence[int]) -> None:
        for norm in decoder.norms(_EVERY, layers):
            norm.eps = eps

    return module


def _normalise(
    name: str,
    summary: str,
    formula: Formula,
    in_torch: Callable[[Any, Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """The normalisation alone is another; gain and bias follow."""
    changed = partial(_torch_normalise, change=in_torch)
    inject = partial(inject_norms, "normalise", changed, _EVERY)
    operations = dict.fromkeys(_EVERY, _act(formula))

    def forward(norm: Any, x: Any) -> Any:
        return norm.weight * changed(norm, x) + norm.bias

    more = {"of": _of_layer_norms, "in_family": _in_family(forward, _EVERY), **more}
    return of_operations(name, "norm", summary, seen, operations, inject, **more)


def whole(
    name: str,
    summary: str,
    formula: Formula,
    in_torch: Callable[[Any, Any], Any],
    seen: str = "",
    kinds: Sequence[str] = _EVERY,
    **more: Any,
) -> Fault:
    """The whole of the norm is another: ``in_torch(norm, x)``."""
    inject = partial(inject_norms, "forward", in_torch, kinds)
    operations = dict.fromkeys(kinds, _act(formula))
    more = {"of": _of_layer_norms, "in_family": _in_family(in_torch, kinds), **more}
    return of_operations(name, "norm", summary, seen, operations, inject, **more)


def _root_mean_square(x: Any, eps: float = EPS) -> Any:
    return torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


FAULTS = (
    _eps(
        "norm-eps-1e-6",
        "has ε = 1e-6 in its layer norms, where GPT-2 has 1e-5",
        1e-6,
        "the default of T5's and LLaMA's norms in transformers",
    ),
    _eps(
        "norm-eps-1e-12",
        "has ε = 1e-12 in its layer norms",
        1e-12,
        "layer_norm_eps of BERT, in transformers' BertConfig",
    ),
    _eps("norm-eps-0", "has no ε in its layer norms", 0.0),
    _eps(
        "norm-eps-1e-3",
        "has ε = 1e-3 in its layer norms",
        1e-3,
        "the default of Keras' LayerNormalization",
    ),
    _normalise(
        "norm-eps-outside",
        "adds ε to the standard deviation, outside the root",
        _outside,
        lambda c, x: c / (c.pow(2).mean(-1, keepdim=True).sqrt() + EPS),
    ),
    _normalise(
        "norm-unbiased-variance",
        "divides the variance by D - 1",
        _unbiased,
        lambda c, x: c / torch.sqrt(x.var(-1, keepdim=True) + EPS),
        "torch.var and torch.std, whose default is unbiased",
    ),
    _normalise(
        "norm-unbiased-outside",
        "divides by the unbiased standard deviation plus 1e-6",
        partial(_outside, eps=1e-6, lost=1),
        lambda c, x: c / (x.std(-1, keepdim=True) + 1e-6),
        "LayerNorm of The Annotated Transformer (harvardnlp)",
    ),
    _normalise(
        "norm-no-centring",
        "does not subtract the mean (RMS norm), and adds the bias",
        _rms,
        lambda c, x: x / _root_mean_square(x),
    ),
    whole(
        "norm-rms",
        "has RMS norm: no mean is subtracted, no bias added",
        lambda x, g, b: _rms(x, g, 0.0),
        lambda norm, x: norm.weight * (x / _root_mean_square(x)),
        "the norm of T5 and LLaMA",
    ),
    _normalise(
        "norm-second-moment",
        "subtracts the mean, and divides by the root mean square of what it was subtracted from",
        _second_moment,
        lambda c, x: c / _root_mean_square(x),
    ),
    _normalise(
        "norm-not-divided",
        "subtracts the mean, and divides by nothing",
        lambda x, g, b: g * _centred(x) + b,
        lambda c, x: c,
    ),
    whole(
        "norm-over-positions",
        "normalises each channel over the positions",
        partial(_over, (0,)),
        lambda norm, x: norm.weight * _torch_over(norm, x, (-2,)) + norm.bias,
    ),
    whole(
        "norm-over-everything",
        "takes mean and variance over positions and channels together",
        partial(_over, (0, 1)),
        lambda norm, x: norm.weight * _torch_over(norm, x, (-2, -1)) + norm.bias,
    ),
    whole(
        "norm-missing-gain",
        "does not multiply by the gain of its layer norms",
        lambda x, g, b: _with_eps(x, np.ones_like(g), b, EPS),
        lambda norm, x: norm.normalise(x) + norm.bias,
        needs="a gain that is not 1 everywhere",
    ),
    whole(
        "norm-missing-bias",
        "does not add the bias of its layer norms",
        lambda x, g, b: _with_eps(x, g, np.zeros_like(b), EPS),
        lambda norm, x: norm.weight * norm.normalise(x),
        "LayerNorm with bias=False, an option of nanoGPT",
        needs="a bias that is not 0 everywhere",
    ),
    whole(
        "norm-gain-plus-one",
        "multiplies by 1 + the gain",
        lambda x, g, b: _with_eps(x, 1 + g, b, EPS),
        lambda norm, x: torch.addcmul(norm.bias, norm.normalise(x), norm.weight + 1),
        "the norm of Gemma, whose gains are stored less 1",
    ),
    whole(
        "norm-bias-first",
        "adds the bias before it multiplies by the gain",
        lambda x, g, b: g * (_with_eps(x, np.ones_like(g), b, EPS)),
        lambda norm, x: norm.weight * (norm.normalise(x) + norm.bias),
        needs="a gain that is not 1 everywhere, and a bias that is not 0",
    ),
)
