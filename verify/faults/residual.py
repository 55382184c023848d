"""Faults of the residual stream: what is added to it, and how the parts of a block are joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.family_blocks import in_place, overwritten, parallel, parallel_one_norm
from gpt_verify.faults.fault import Fault, InTransformers, of_operations
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, Precision
from gpt_verify.reference.branches import norm
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array

#: What is joined: the stream and what a branch has made of it.
Sum = Callable[[Array, Array], Array]


def _inject(
    wire: Callable[[Any, Any, Callable[[Any], Any]], Any], model: Any, layers: Sequence[int]
) -> None:
    for block in model.blocks(layers):
        replace(block, "wire", wire)


def _residual(
    name: str,
    summary: str,
    operations: Mapping[str, Override],
    wire: Callable[[Any, Any, Callable[[Any], Any]], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """``wire(block, x, attend)`` joins the parts of a block in torch."""
    return of_operations(
        name, "residual", summary, seen, operations, partial(_inject, wire), **more
    )


def _summed(join: Sum, call: Call) -> Array:
    stream, branch = (call.values[name] for name in call.site.inputs)
    return join(stream, branch)


def _torch_summed(block: Any, x: Any, attend: Any, join: Callable[[Any, Any], Any]) -> Any:
    x = join(x, attend(block.ln_1(x)))
    return join(x, block.mlp(block.ln_2(x)))


def _both(
    name: str,
    summary: str,
    join: Sum,
    in_torch: Callable[[Any, Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """Both sums of a block are another."""
    operations = dict.fromkeys(("resid_mid", "resid_post"), partial(_summed, join))
    return _residual(name, summary, operations, partial(_torch_summed, join=in_torch), seen, **more)


def _by_depth(call: Call) -> Array:
    stream, branch = (call.values[name] for name in call.site.inputs)
    value: Array = stream + branch / np.sqrt(2 * call.config.n_layer)
    return value


def _inject_by_depth(model: Any, layers: Sequence[int]) -> None:
    factor = (2 * len(model.h)) ** -0.5
    _inject(partial(_torch_summed, join=lambda x, out: x + factor * out), model, layers)


def _narrow(name: str, precision: Precision, seen: str = "") -> Fault:
    def join(stream: Array, branch: Array) -> Array:
        return precision.round(precision.round(stream) + precision.round(branch))

    def in_torch(x: Any, out: Any) -> Any:
        narrow = getattr(torch, precision.name)
        return torch.add(x.to(narrow), out.to(narrow)).to(x.dtype)

    summary = f"keeps the residual stream in {precision.name}"
    return _both(name, summary, join, in_torch, seen, quantising=True, stored=precision.name)


def _normed(call: Call, x_TD: Array) -> Array:
    return norm(x_TD, f"h{call.layer}/ln_2", call.config, call.w)


def _in_turn(config: Config) -> bool:
    """Attention first, and then the MLP; each reads what a norm has made."""
    return config.norm_first and not config.keys.parallel


# Torch: how a block is joined


def _no_attention_residual(block: Any, x: Any, attend: Any) -> Any:
    x = attend(block.ln_1(x))
    return x + block.mlp(block.ln_2(x))


def _no_mlp_residual(block: Any, x: Any, attend: Any) -> Any:
    return block.mlp(block.ln_2(x + attend(block.ln_1(x))))


def _attention_ignored(block: Any, x: Any, attend: Any) -> Any:
    attend(block.ln_1(x))
    return x + block.mlp(block.ln_2(x))


def _mlp_ignored(block: Any, x: Any, attend: Any) -> Any:
    x = x + attend(block.ln_1(x))
    block.mlp(block.ln_2(x))
    return x


def _from_norms(block: Any, x: Any, attend: Any) -> Any:
    normed = block.ln_1(x)
    normed = block.ln_2(normed + attend(normed))
    return normed + block.mlp(normed)


def _mlp_from_input(block: Any, x: Any, attend: Any) -> Any:
    return x + block.mlp(block.ln_2(x + attend(block.ln_1(x))))


def _parallel(block: Any, x: Any, attend: Any) -> Any:
    return x + attend(block.ln_1(x)) + block.mlp(block.ln_2(x))


def _parallel_one_norm(block: Any, x: Any, attend: Any) -> Any:
    normed = block.ln_1(x)
    return attend(normed) + x + block.mlp(normed)


def _torch_dropout(x: Any, out: Any) -> Any:
    return x + torch.nn.functional.dropout(out, 0.1, training=True)


FAULTS = (
    _residual(
        "residual-attention-missing",
        "does not add what attention makes to the stream, but replaces the stream by it",
        {"resid_mid": lambda call: call.at("attn.out")},
        _no_attention_residual,
    ),
    _residual(
        "residual-mlp-missing",
        "does not add what the MLP makes to the stream, but replaces the stream by it",
        {"resid_post": lambda call: call.at("mlp.out")},
        _no_mlp_residual,
    ),
    _residual(
        "residual-attention-ignored",
        "leaves out what attention makes",
        {"resid_mid": Call.stream},
        _attention_ignored,
    ),
    _residual(
        "residual-mlp-ignored",
        "leaves out what the MLP makes",
        {"resid_post": lambda call: call.x},
        _mlp_ignored,
    ),
    _both(
        "residual-stream-twice",
        "adds the stream twice",
        lambda stream, branch: 2 * stream + branch,
        lambda x, out: x + x + out,
    ),
    _both(
        "residual-branch-twice",
        "adds what each branch makes twice",
        lambda stream, branch: stream + 2 * branch,
        lambda x, out: torch.add(x, out, alpha=2),
    ),
    _both(
        "residual-scaled",
        "divides each sum of the stream by √2",
        lambda stream, branch: (stream + branch) / math.sqrt(2),
        lambda x, out: x * 0.5**0.5 + out * 0.5**0.5,
        "the residual sums of convolutional sequence models (fairseq's fconv)",
    ),
    of_operations(
        "residual-scaled-by-depth",
        "residual",
        "divides what each branch makes by √(2L)",
        "GPT-2's initialisation, which is scaled so, taken for part of the model",
        dict.fromkeys(("resid_mid", "resid_post"), _by_depth),
        _inject_by_depth,
    ),
    _residual(
        "residual-after-norm",
        "adds what each branch makes to what the norm has made, not to the stream before it",
        dict.fromkeys(("resid_mid", "resid_post"), overwritten),
        _from_norms,
        "apply_residual_connection_post_layernorm of BLOOM and Megatron; a norm in place",
        of=lambda config: config.norm_first and config.keys.parallel != 2,
        in_family=InTransformers(module=in_place),
    ),
    _residual(
        "residual-mlp-from-input",
        "adds what the MLP makes to the stream as it entered the block, without attention's part",
        {"resid_post": lambda call: call.stream() + call.at("mlp.out")},
        _mlp_from_input,
    ),
    _residual(
        "residual-parallel",
        "feeds the MLP with the stream as it entered the block, beside attention",
        {"ln_2": lambda call: _normed(call, call.stream())},
        _parallel,
        "use_parallel_residual of GPT-NeoX in transformers",
        of=_in_turn,
        in_family=InTransformers(module=parallel),
    ),
    _residual(
        "residual-parallel-one-norm",
        "feeds the MLP with what ln_1 has made, beside attention",
        {"ln_2": lambda call: call.at("ln_1")},
        _parallel_one_norm,
        "the block of GPT-J",
        of=_in_turn,
        in_family=InTransformers(module=parallel_one_norm),
    ),
    _narrow("residual-float16", FLOAT16),
    _narrow("residual-bfloat16", BFLOAT16),
    _residual(
        "residual-dropout",
        "drops a tenth of what each branch makes by chance, as in training",
        {},
        partial(_torch_summed, join=_torch_dropout),
        "a model that was not put into evaluation mode",
        law="determinism",
    ),
)
