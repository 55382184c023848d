"""Steps of ``gpt_verify.faults.model.Model``, written in other ways that are as right."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import F, torch

#: Changes how a correct model computes, not what.
Rewrite = Callable[[Any], None]


def each(kind: str, **steps: Callable[..., Any]) -> Rewrite:
    """Replace steps of every ``attn``, ``mlp``, ``norm`` or ``linear`` of a model."""

    def rewrite(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__.lower() == kind:
                for name, step in steps.items():
                    replace(module, name, step)

    return rewrite


# Attention


def causal(attn: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
    """Attention has the fused kernel's own mask, where the sequence starts at 0 and nothing is
    padded.

    Args:
        attn: the module.
        q, k, v: [B, H, T, K] each; S in place of T where there is a cache.
        allowed: which sources a target reads, bool, of a shape that broadcasts to [B, H, T, S].
    """
    square = allowed.dim() == 2 and q.shape[-2] == k.shape[-2]
    mask = None if square else allowed
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=square)


def query_scaled(attn: Any, q: Any, k: Any) -> Any:
    return (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)


def scores_by_einsum(attn: Any, q: Any, k: Any) -> Any:
    return torch.einsum("bhtk,bhsk->bhts", q, k) / math.sqrt(q.shape[-1])


def mix_by_einsum(attn: Any, pattern: Any, v: Any) -> Any:
    return torch.einsum("bhts,bhsk->bhtk", pattern, v)


def mask_added(attn: Any, scores: Any, allowed: Any) -> Any:
    """The mask is a matrix of numbers that is added to the scores."""
    lowest = torch.finfo(scores.dtype).min
    return scores + torch.zeros_like(scores).masked_fill(~allowed, lowest)


def head_by_head(attn: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
    """The heads are computed one after the other; the arguments are those of ``causal``."""
    allowed = allowed.expand(*q.shape[:-1], k.shape[-2])
    mixed = []
    for head in range(attn.n_head):
        scores = attn.mask(attn.scores(q[:, head], k[:, head]), allowed[:, head])
        mixed.append(attn.softmax(scores) @ v[:, head])
    return torch.stack(mixed, dim=1)


def softmax_by_hand(attn: Any, scores: Any) -> Any:
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return weights / weights.sum(dim=-1, keepdim=True)


def softmax_in_float32(attn: Any, scores: Any) -> Any:
    wider = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, dim=-1, dtype=wider).to(scores.dtype)


def split_qkv(model: Any) -> None:
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


def fused_kv(model: Any) -> None:
    """q by itself, k and v in one matrix."""
    _in_pieces(model, lambda columns, heads: [columns[0].flatten(), columns[1:].flatten()])


def backwards(model: Any) -> None:
    """One matrix, v before k before q."""
    _in_pieces(model, lambda columns, heads: [columns.flip(0).flatten()])


def list_of_heads(model: Any) -> None:
    """A layer for each of q, k and v of each head."""
    _in_pieces(model, lambda columns, heads: list(columns.flatten().chunk(3 * heads)))


def fused_heads(model: Any) -> None:
    """A layer for each head, q, k and v side by side."""
    _in_pieces(model, lambda columns, heads: list(columns.transpose(0, 1).flatten(1)))


def _in_pieces(model: Any, cut: Callable[[Any, int], list[Any]]) -> None:
    """``c_attn`` in several matrices, or in another order.

    Args:
        cut: from the columns, [q/k/v, head, size], and the number of heads to those of each.
    """
    for block in model.blocks(range(model.config.n_layer)):
        attn = block.attn
        columns = torch.arange(attn.c_attn.bias.numel()).view(3, attn.n_head, -1)
        pieces = cut(columns, attn.n_head)
        weight, bias = attn.c_attn.weight, attn.c_attn.bias
        parts = [_stored_transposed(weight[:, of], bias[of]) for of in pieces]
        del attn.c_attn
        attn.pieces = torch.nn.ModuleList(parts)
        attn.c_attn = _InOrder(parts, torch.argsort(torch.cat(pieces)))


class _InOrder:
    """Projections of one input, put in order. No module: they belong to the attention."""

    def __init__(self, parts: list[Any], order: Any) -> None:
        self.parts, self.order = parts, order

    def __call__(self, x: Any) -> Any:
        return torch.cat([part(x) for part in self.parts], dim=-1)[..., self.order.to(x.device)]


class _Side:
    """Three projections of one input, side by side. No module: they belong to the attention."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __call__(self, x: Any) -> Any:
        return torch.cat([part(x) for part in self.parts], dim=-1)


# Linear


def _stored_transposed(weight: Any, bias: Any) -> Any:
    linear = torch.nn.Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(bias)
    return linear.eval()


def linears(model: Any) -> None:
    """torch's own Linear everywhere, which stores [out, in]."""
    for block in model.blocks(range(model.config.n_layer)):
        for part, names in ((block.attn, ("c_attn", "c_proj")), (block.mlp, ("c_fc", "c_proj"))):
            for name in names:
                old = getattr(part, name)
                setattr(part, name, _stored_transposed(old.weight, old.bias))


def addmm(linear: Any, x: Any) -> Any:
    """The product is made as transformers' Conv1D makes it."""
    flat = torch.addmm(linear.bias, x.reshape(-1, x.shape[-1]), linear.weight)
    return flat.reshape(*x.shape[:-1], -1)


def in_two_halves(linear: Any, x: Any) -> Any:
    """The sum over the inputs in another order."""
    half = x.shape[-1] // 2
    if not half:
        return x @ linear.weight + linear.bias  # one number has no order
    left, right = linear.weight[:half], linear.weight[half:]
    return (x[..., half:] @ right + x[..., :half] @ left) + linear.bias


# Layer norm, activation, residual


def torch_norm(norm: Any, x: Any) -> Any:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def divided(norm: Any, x: Any) -> Any:
    deviation = torch.sqrt(x.var(-1, keepdim=True, correction=0) + norm.eps)
    return (x - x.mean(-1, keepdim=True)) / deviation


def tanh_by_exp(mlp: Any, x: Any) -> Any:
    z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + (1 - 2 / (torch.exp(2 * z) + 1)))


def gelu_by_sigmoid(mlp: Any, x: Any) -> Any:
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def torch_gelu(mlp: Any, x: Any) -> Any:
    return F.gelu(x, approximate="tanh")


def in_place(block: Any, x: Any, attend: Callable[[Any], Any]) -> Any:
    if torch.is_grad_enabled():  # what autograd needs must not be overwritten
        return type(block).wire(block, x, attend)
    x = x.clone().add_(attend(block.ln_1(x)))
    return x.add_(block.mlp(block.ln_2(x)))


def computed_again(block: Any, x: Any, attend: Callable[[Any], Any]) -> Any:
    """In training the block keeps its input alone, and is computed again in the backward pass."""
    wire = partial(type(block).wire, block)
    if not (block.training and torch.is_grad_enabled()):
        return wire(x, attend)
    return torch.utils.checkpoint.checkpoint(wire, x, attend, use_reentrant=False)


# Embeddings and head


def one_hot(model: Any, ids: Any, positions: Any) -> Any:
    table = F.one_hot(ids, model.config.n_vocab).to(model.wte.dtype)
    return table @ model.wte + model.wpe[positions]


def indexed(model: Any, ids: Any, positions: Any) -> Any:
    return model.wte[ids] + model.wpe[positions]


def head_as_linear(model: Any, x: Any) -> Any:
    return F.linear(x, model.wte)


def whole(**steps: Callable[..., Any]) -> Rewrite:
    return each("model", **steps)


# Generation


def generate_with_cache(
    model: Any,
    ids: Any,
    max_new_tokens: int,
    do_sample: bool = False,
    attention_mask: Any = None,
    eos_token_id: int | None = None,
) -> Any:
    """Token by token with a cache, padded or not; the arguments are those of ``Model.generate``."""
    real = torch.ones_like(ids) if attention_mask is None else attention_mask
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    new, past = ids, None
    for _ in range(max_new_tokens):
        with torch.no_grad():
            output = model(new, attention_mask=real, past_key_values=past, use_cache=True)
        past = output["past_key_values"]
        token = output["logits"][:, -1].argmax(-1).masked_fill(done, 0)
        done |= model.ended(token, eos_token_id)
        new = token[:, None]
        ids, real = torch.cat([ids, new], dim=1), F.pad(real, (0, 1), value=1)
        if done.all():
            break
    return ids
