"""Faults of precision: a float32 port that computes in less, without saying so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.fault import AroundPort, Array, AtSites, Fault, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, Precision
from gpt_verify.reference.ops import layer_norm

Round = Callable[[Array], Array]


def _tf32(x: Array) -> Array:
    """To 11 significant bits, to nearest even."""
    fraction, exponent = np.frexp(np.asarray(x, np.float32))
    rounded: Array = np.ldexp(np.rint(np.ldexp(fraction, 11)), exponent - 11)
    return rounded


def _products(operand: Round, result: Round) -> dict[str, Override]:
    """Every matrix product with its operands rounded, and its result; a bias is part of it."""

    def product(call: Call, a: Array, b: Array) -> Array:
        wide: Array = operand(a).astype(call.dtype) @ operand(b).astype(call.dtype)
        return wide

    def linear(call: Call) -> Array:
        bias_F = result(call.own(1)).astype(call.dtype)
        return result(product(call, call.x, call.own(0)) + bias_F)

    def scores(call: Call) -> Array:
        q_HTK, k_HTK, _ = call.heads()
        product_HTS = result(product(call, q_HTK, np.swapaxes(k_HTK, -1, -2)))
        return result(product_HTS.astype(call.dtype) / np.sqrt(q_HTK.shape[-1]))

    def mix(call: Call) -> Array:
        mixed_HTK = result(product(call, call.x, call.heads()[2]))
        return np.swapaxes(mixed_HTK, 0, 1).reshape(len(call.tokens_T), -1)

    def logits(call: Call) -> Array:
        return result(product(call, call.x, call.own(0).T))

    linears = dict.fromkeys(("attn.qkv", "attn.out", "mlp.pre", "mlp.out"), linear)
    return {**linears, "attn.scores": scores, "attn.mix": mix, "logits": logits}


def _inject_tf32(port: Any, checkpoint: Checkpoint) -> None:
    from gpt_verify.laws.precision.injection import inject_tf32

    inject_tf32(port)


def _inject_autocast(dtype: str, model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=getattr(torch, dtype)):
            return right(*args, **kwargs)

    def linear(self: Any, right: Any, x: Any) -> Any:
        return torch.nn.functional.linear(x, self.weight.T, self.bias)

    wrap(model, "forward", forward)
    for block in model.h:
        for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            wrap(part, "forward", linear)  # one operation, as ports have it


def _inject_product(dtype: str, model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, x: Any) -> Any:
        x_, weight, bias = (t.to(getattr(torch, dtype)) for t in (x, self.weight, self.bias))
        return torch.nn.functional.linear(x_, weight.T, bias).to(x.dtype)

    for block in model.blocks(layers):
        wrap(block.mlp.c_fc, "forward", forward)


def _inject_norm(dtype: str, model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, x: Any) -> Any:
        x_, weight, bias = (t.to(getattr(torch, dtype)) for t in (x, self.weight, self.bias))
        normed = torch.nn.functional.layer_norm(x_, x.shape[-1:], weight, bias, self.eps)
        return normed.to(x.dtype)

    for norm in model.norms(layers):
        wrap(norm, "forward", forward)


def _fault(
    name: str,
    summary: str,
    operations: Mapping[str, Override],
    inject: InModel | AroundPort,
    law: str,
    seen: str = "",
) -> Fault:
    return Fault(
        f"precision-{name}",
        "precision",
        summary,
        seen,
        inject,
        AtSites(operations, quantising=True),
        law,
        needs="a model in that precision computes so anyway",
    )


def _halves(precision: Precision) -> tuple[Fault, ...]:
    def norm(call: Call) -> Array:
        parts = (call.x, call.own(0), call.own(1))
        x, g, b = (precision.round(part).astype(call.dtype) for part in parts)
        return precision.round(layer_norm(x, g, b))

    def rounded(call: Call) -> Array:
        """What a product reads, as it reads it."""
        return precision.round(right(call))

    name, products = precision.name, _products(precision.round, precision.round)
    read = dict.fromkeys(("ln_1", "ln_2", "ln_f", "attn.pattern"), rounded)
    return (
        _fault(
            f"autocast-{name}",
            f"runs under autocast to {name}, which was left on",
            products | read,
            InModel(partial(_inject_autocast, name), layered=False),
            "precision",
        ),
        _fault(
            f"product-{name}",
            f"computes one matrix product in {name}",
            {"ln_2": rounded, "mlp.pre": products["mlp.pre"]},
            InModel(partial(_inject_product, name)),
            "precision",
        ),
        _fault(
            f"norm-{name}",
            f"computes layer norm in {name}",
            dict.fromkeys(("ln_1", "ln_2", "ln_f"), norm),
            InModel(partial(_inject_norm, name)),
            "activations.local",
        ),
    )


FAULTS = (
    _fault(
        "tf32",
        "multiplies in TF32, on tensor cores",
        _products(_tf32, lambda x: x),
        AroundPort(_inject_tf32),
        "precision",
        "the default of torch on Ampere GPUs up to version 1.11 (pytorch/pytorch#67384)",
    ),
    *_halves(BFLOAT16),
    *_halves(FLOAT16),
)
