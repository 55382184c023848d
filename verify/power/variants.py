"""Correct ports, written in every way that is in use. None of them may be refuted.

Each is ``verify.faults.model.Model`` with some steps written differently, or called differently;
the last ones are other people's.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from verify.checkpoint import Checkpoint
from verify.faults.model import Model, Options, build
from verify.ports import registry
from verify.ports.callable import CallablePort
from verify.ports.port import Dtype, Port
from verify.ports.torch_module import TorchModule

#: Changes how a correct model computes, not what.
Rewrite = Callable[[Model], None]


def _module(
    checkpoint: Checkpoint,
    *,
    name: str,
    options: Options | None = None,
    rewrite: Rewrite = lambda model: None,
    dtype: Dtype | None = None,
) -> Port:
    model = build(checkpoint, options)
    rewrite(model)
    return TorchModule(model, checkpoint, name, dtype)


def _method(module: nn.Module, name: str, step: Callable[..., Any]) -> None:
    """Replace a step; it is given the module first."""
    setattr(module, name, types.MethodType(step, module))


def _each(kind: str, **steps: Callable[..., Any]) -> Rewrite:
    """Replace steps of every ``attn``, ``mlp``, ``norm`` or ``linear`` of a model."""

    def rewrite(model: Model) -> None:
        for module in model.modules():
            if type(module).__name__.lower() == kind:
                for name, step in steps.items():
                    _method(module, name, step)

    return rewrite


# Attention


def _causal(attn: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """The fused kernel's own mask, where the sequence starts at 0 and nothing is padded."""
    square = allowed.dim() == 2 and q.shape[-2] == k.shape[-2]
    mask = None if square else allowed
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=square)


def _query_scaled(attn: Any, q: Tensor, k: Tensor) -> Tensor:
    return (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)


def _scores_by_einsum(attn: Any, q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhtk,bhsk->bhts", q, k) / math.sqrt(q.shape[-1])


def _mix_by_einsum(attn: Any, pattern: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhts,bhsk->bhtk", pattern, v)


def _head_by_head(attn: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    allowed = allowed.expand(*q.shape[:-1], k.shape[-2])
    mixed = []
    for head in range(attn.n_head):
        scores = attn.mask(attn.scores(q[:, head], k[:, head]), allowed[:, head])
        mixed.append(attn.softmax(scores) @ v[:, head])
    return torch.stack(mixed, dim=1)


def _softmax_by_hand(attn: Any, scores: Tensor) -> Tensor:
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return weights / weights.sum(dim=-1, keepdim=True)


def _softmax_in_float32(attn: Any, scores: Tensor) -> Tensor:
    wider = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, dim=-1, dtype=wider).to(scores.dtype)


def _split_qkv(model: Model) -> None:
    """Three matrices in place of one, stored [out, in]."""
    for block in model.blocks(range(model.config.n_layer)):
        attn = block.attn
        weights, biases = attn.c_attn.weight.chunk(3, dim=1), attn.c_attn.bias.chunk(3)
        parts = []
        for weight, bias in zip(weights, biases, strict=True):
            parts.append(_stored_transposed(weight, bias))
        del attn.c_attn
        attn.q, attn.k, attn.v = parts
        attn.c_attn = _Side(parts)


class _Side:
    """Three projections of one input, side by side. No module: they belong to the attention."""

    def __init__(self, parts: list[nn.Linear]) -> None:
        self.parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


# Linear


def _stored_transposed(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(bias)
    return linear.eval()


def _linears(model: Model) -> None:
    """torch's own Linear everywhere, which stores [out, in]."""
    for block in model.blocks(range(model.config.n_layer)):
        for part, names in ((block.attn, ("c_attn", "c_proj")), (block.mlp, ("c_fc", "c_proj"))):
            for name in names:
                old = getattr(part, name)
                setattr(part, name, _stored_transposed(old.weight, old.bias))


def _addmm(linear: Any, x: Tensor) -> Tensor:
    """As transformers' Conv1D does."""
    flat = torch.addmm(linear.bias, x.reshape(-1, x.shape[-1]), linear.weight)
    return flat.reshape(*x.shape[:-1], -1)


def _in_two_halves(linear: Any, x: Tensor) -> Tensor:
    """The sum over the inputs in another order."""
    half = x.shape[-1] // 2
    left, right = linear.weight[:half], linear.weight[half:]
    return (x[..., half:] @ right + x[..., :half] @ left) + linear.bias


# Layer norm, activation, residual


def _torch_norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _divided(norm: Any, x: Tensor) -> Tensor:
    deviation = torch.sqrt(x.var(-1, keepdim=True, correction=0) + norm.eps)
    return (x - x.mean(-1, keepdim=True)) / deviation


def _tanh_by_exp(mlp: Any, x: Tensor) -> Tensor:
    z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + (1 - 2 / (torch.exp(2 * z) + 1)))


def _gelu_by_sigmoid(mlp: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def _torch_gelu(mlp: Any, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _in_place(block: Any, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    if torch.is_grad_enabled():  # what autograd needs must not be overwritten
        return type(block).wire(block, x, attend)
    x = x.clone().add_(attend(block.ln_1(x)))
    return x.add_(block.mlp(block.ln_2(x)))


# Embeddings and head


def _one_hot(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    table = F.one_hot(ids, model.config.n_vocab).to(model.wte.dtype)
    return table @ model.wte + model.wpe[positions]


def _indexed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    return model.wte[ids] + model.wpe[positions]


def _head_as_linear(model: Any, x: Tensor) -> Tensor:
    return F.linear(x, model.wte)


def _whole(**steps: Callable[..., Any]) -> Rewrite:
    return _each("model", **steps)


# Called in another way; these show nothing but logits.


def _called(
    call: Callable[[Model, Tensor], Tensor], name: str, dtype: Dtype | None = None
) -> Callable[[Checkpoint], Port]:
    def made(checkpoint: Checkpoint) -> Port:
        model = build(checkpoint)

        def logits(tokens: Any) -> Tensor:
            with torch.no_grad():
                return call(model, torch.from_numpy(np.asarray(tokens, np.int64)))

        return CallablePort(logits, name, dtype)

    return made


def _plain(model: Model, ids: Tensor) -> Tensor:
    return cast(Tensor, model(ids)["logits"])


def _decoded(model: Model, ids: Tensor) -> Tensor:
    """Token by token, with a cache; the prompt is its first half."""
    start = max(1, ids.shape[1] // 2)
    past, parts = None, []
    for first, last in [(0, start), *((i, i + 1) for i in range(start, ids.shape[1]))]:
        output = model(ids[:, first:last], past_key_values=past, use_cache=True)
        past = output["past_key_values"]
        parts.append(output["logits"])
    return torch.cat(parts, dim=1)


def _among_others(model: Model, ids: Tensor) -> Tensor:
    """In a batch with other sequences."""
    others = (ids.flip(0) + 1) % model.config.n_vocab
    return _plain(model, torch.cat([others, ids, others]))[len(ids) : 2 * len(ids)]


def _row_by_row(model: Model, ids: Tensor) -> Tensor:
    return torch.cat([_plain(model, row[None]) for row in ids])


def _padded_left(model: Model, ids: Tensor) -> Tensor:
    """With padding before it, where there is room."""
    pad = min(3, model.config.n_ctx - ids.shape[1])
    if pad <= 0:
        return _plain(model, ids)
    mask = F.pad(torch.ones_like(ids), (pad, 0))
    return cast(Tensor, model(F.pad(ids, (pad, 0)), attention_mask=mask)["logits"][:, pad:])


def _functional(model: Model, ids: Tensor) -> Tensor:
    """The parameters are an argument, not a state."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return cast(Tensor, torch.func.functional_call(model, parameters, (ids,))["logits"])


def _in_float64(model: Model, ids: Tensor) -> Tensor:
    return _plain(model.double(), ids)


def _compiled(checkpoint: Checkpoint) -> Port:
    """torch.compile with the default backend, once for all lengths."""
    model = build(checkpoint)
    compiled = torch.compile(lambda ids: model(ids)["logits"], dynamic=True)

    def logits(tokens: Any) -> Any:
        with torch.no_grad():
            return compiled(torch.from_numpy(np.asarray(tokens, np.int64)))

    return CallablePort(logits, "compiled", None)


def _builtin(name: str) -> Callable[[Checkpoint], Port]:
    def made(checkpoint: Checkpoint) -> Port:
        return registry.build(name, checkpoint, None, "cpu")

    return made


#: Name → what is different, in the terms of ``_module``.
_MODULES: dict[str, dict[str, Any]] = {
    "eager": {},
    "fused attention": {"options": Options(fused=True)},
    "fused attention, is_causal": {"rewrite": _each("attention", attend=_causal)},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, fused attention": {"dtype": "bfloat16", "options": Options(fused=True)},
    "bfloat16, softmax in float32": {
        "dtype": "bfloat16",
        "rewrite": _each("attention", softmax=_softmax_in_float32),
    },
    "float16": {"dtype": "float16", "rewrite": _each("norm", forward=_torch_norm)},
    "masked by -1e4": {"options": Options(masked=-1e4)},
    "masked by -inf": {"options": Options(masked=-math.inf)},
    "padded vocabulary": {"options": Options(padded_vocabulary=27)},
    "split q, k, v": {"rewrite": _split_qkv},
    "nn.Linear": {"rewrite": _linears},
    "addmm": {"rewrite": _each("linear", forward=_addmm)},
    "sums in another order": {"rewrite": _each("linear", forward=_in_two_halves)},
    "F.layer_norm": {"rewrite": _each("norm", forward=_torch_norm)},
    "norm divided by the deviation": {"rewrite": _each("norm", normalise=_divided)},
    "F.gelu, tanh": {"rewrite": _each("mlp", act=_torch_gelu)},
    "tanh by exp": {"rewrite": _each("mlp", act=_tanh_by_exp)},
    "GELU by sigmoid": {"rewrite": _each("mlp", act=_gelu_by_sigmoid)},
    "residual in place": {"rewrite": _each("block", wire=_in_place)},
    "query scaled first": {"rewrite": _each("attention", scores=_query_scaled)},
    "einsum": {"rewrite": _each("attention", scores=_scores_by_einsum, mix=_mix_by_einsum)},
    "head by head": {"rewrite": _each("attention", attend=_head_by_head)},
    "softmax by hand": {"rewrite": _each("attention", softmax=_softmax_by_hand)},
    "one-hot lookup": {"rewrite": _whole(embed=_one_hot)},
    "indexed lookup": {"rewrite": _whole(embed=_indexed)},
    "F.linear head": {"rewrite": _whole(head=_head_as_linear)},
}
_CALLS: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "logits only": _plain,
    "decoded with a cache": _decoded,
    "in a batch with others": _among_others,
    "row by row": _row_by_row,
    "padded on the left": _padded_left,
    "functional": _functional,
    "logits in float64": _in_float64,
}
_BUILTIN = ("huggingface-eager", "huggingface-sdpa")

#: Every correct variant, by name.
VARIANTS: dict[str, Callable[[Checkpoint], Port]] = {
    **{name: partial(_module, name=name, **how) for name, how in _MODULES.items()},
    **{name: _called(call, name) for name, call in _CALLS.items()},
    "torch.compile": _compiled,
    **{name: _builtin(name) for name in _BUILTIN},
}


def unavailable(name: str) -> str | None:
    """Why a variant cannot be built here, or None."""
    if name in _BUILTIN:
        return next((p.missing for p in registry.builtin_ports() if p.name == name), None)
    if name == "torch.compile":
        return _no_compiler()
    return None


def _no_compiler() -> str | None:
    """torch.compile makes C++ of a model."""
    import torch._inductor.cpp_builder as cpp

    try:
        cpp.get_cpp_compiler()
    except Exception as error:
        return f"no C++ compiler: {str(error).splitlines()[0]}"
    return None
