"""Ports that treat alike parts of a GPT-2 unlike, or read what they should not.

Each function alters transformers' GPT-2 after it was loaded.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


def _replace_forward(module: nn.Module, forward: Any) -> None:
    module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]


class Attention:
    """Attention written out, with a place to go wrong at each step. Heads are [B, H, T, K]."""

    def query(self, q: Tensor) -> Tensor:
        return q

    def key(self, k: Tensor) -> Tensor:
        return k

    def value(self, v: Tensor) -> Tensor:
        return v

    def scores(self, scores: Tensor) -> Tensor:
        return scores

    def mix(self, mix: Tensor) -> Tensor:
        return mix

    def __call__(self, attn: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        batch, length, width = x.shape
        shape = (batch, length, attn.num_heads, attn.head_dim)
        parts = attn.c_attn(x).split(width, dim=-1)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        scores = self.query(q) @ self.key(k).transpose(-1, -2) * attn.scaling
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = self.scores(scores).masked_fill(future, float("-inf"))
        mix = self.mix(torch.softmax(scores, dim=-1) @ self.value(v))
        return attn.c_proj(mix.transpose(1, 2).reshape(batch, length, width)), None


def _attention(model: Any, layer: int = 1, **steps: Callable[[Tensor], Tensor]) -> None:
    """Go wrong at some steps of one layer."""
    attention = Attention()
    for name, step in steps.items():
        setattr(attention, name, step)
    attn = model.transformer.h[layer].attn
    attn.forward = lambda *args, **kwargs: attention(attn, *args, **kwargs)


def _to_int8(x: Tensor) -> Tensor:
    """Rounded to 255 levels and back."""
    size = x.abs().amax() / 127
    return torch.round(x / size) * size


def written_out(model: Any) -> None:
    """No fault: attention as it is, written out."""
    _attention(model)


# Heads


def heads_scaled_by_index(model: Any) -> None:
    """Scores of head h are multiplied by a slope of its own."""
    _attention(
        model,
        scores=lambda s: s * (1 + torch.arange(s.shape[1], dtype=s.dtype) / 100)[:, None, None],
    )


def distance_penalty(model: Any) -> None:
    """ALiBi: scores fall with the distance, by a slope of each head."""

    def penalise(scores: Tensor) -> Tensor:
        n = scores.shape[-1]
        distance = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0)
        slope = 2.0 ** -torch.arange(1, scores.shape[1] + 1)
        return scores - slope[:, None, None].to(scores.dtype) * distance

    _attention(model, scores=penalise)


def one_local_head(model: Any) -> None:
    """The first head sees the last four positions only."""

    def narrow(scores: Tensor) -> Tensor:
        far = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-4)
        local = scores[:, :1].masked_fill(far, float("-inf"))
        return torch.cat([local, scores[:, 1:]], dim=1)

    _attention(model, scores=narrow)


def keys_shared_by_two_heads(model: Any) -> None:
    """Grouped queries: every second head uses the keys of the one before it."""

    def share(k: Tensor) -> Tensor:
        return k[:, torch.arange(k.shape[1]) // 2 * 2]

    _attention(model, key=share)


def last_head_dropped(model: Any) -> None:
    """What the last head found is lost."""
    _attention(model, mix=lambda m: torch.cat([m[:, :-1], torch.zeros_like(m[:, -1:])], dim=1))


# Neurons


class _ByNeuron(nn.Module):
    """An activation that depends on which neuron it is."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def last_neurons_dropped(model: Any) -> None:
    """The width was rounded down to a multiple of the tile: the last neurons count nothing."""
    width = 4 * model.config.n_embd - 8
    mask = (torch.arange(4 * model.config.n_embd) < width).float()
    model.transformer.h[1].mlp.act = _ByNeuron(lambda x: _gelu(x) * mask.to(x.dtype))


def two_activations(model: Any) -> None:
    """The exact GELU in the lower half, its approximation in the upper."""

    def halves(x: Tensor) -> Tensor:
        lower, upper = x.chunk(2, dim=-1)
        return torch.cat([F.gelu(lower), _gelu(upper)], dim=-1)

    model.transformer.h[1].mlp.act = _ByNeuron(halves)


def gated_by_the_other_half(model: Any) -> None:
    """A little of a gated unit: each neuron is multiplied by one of the other half."""
    model.transformer.h[1].mlp.act = _ByNeuron(
        lambda x: _gelu(x) * (1 + 1e-3 * torch.tanh(x.roll(x.shape[-1] // 2, -1)))
    )


# Scale


def query_clipped(model: Any) -> None:
    """Queries are clipped as against outliers."""
    _attention(model, query=lambda q: q.clamp(-1.0, 1.0))


def query_and_key_normalised(model: Any) -> None:
    """Queries and keys are normalised before they are multiplied."""

    def normalise(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])

    _attention(model, query=normalise, key=normalise)


def query_in_bfloat16(model: Any) -> None:
    """Queries go through bfloat16."""
    _attention(model, query=lambda q: q.bfloat16().to(q.dtype))


def key_cache_in_int8(model: Any) -> None:
    """Keys are cached in eight bits."""
    _attention(model, key=_to_int8)


# Rotate


def value_clipped(model: Any) -> None:
    """Values are clipped as against outliers."""
    _attention(model, value=lambda v: v.clamp(-0.5, 0.5))


def value_cache_in_int8(model: Any) -> None:
    """Values are cached in eight bits."""
    _attention(model, value=_to_int8)


def mix_through_an_activation(model: Any) -> None:
    """What attention found goes through a nonlinearity before c_proj."""
    _attention(model, mix=lambda m: m + 1e-3 * torch.tanh(m))


def value_channels_scaled(model: Any) -> None:
    """Values have a gain for each channel, as from a norm that was folded in on one side only."""
    _attention(model, value=lambda v: v * (1 + torch.arange(v.shape[-1], dtype=v.dtype) / 32))


# Shift


def norm_without_centring(model: Any) -> None:
    """RMSNorm in the place of a layer norm."""

    def forward(norm: Any, x: Tensor) -> Tensor:
        return norm.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) + norm.bias

    _replace_forward(model.transformer.h[1].ln_2, forward)


def norm_centred_too_late(model: Any) -> None:
    """The deviation is taken around zero, and the mean is subtracted afterwards."""

    def forward(norm: Any, x: Tensor) -> Tensor:
        y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps)
        return norm.weight * (y - y.mean(-1, keepdim=True)) + norm.bias

    _replace_forward(model.transformer.ln_f, forward)


def stream_clipped(model: Any) -> None:
    """The residual stream is clipped as against overflow, at what it hardly reaches."""
    block = model.transformer.h[1]
    block.register_forward_hook(lambda module, args, y: torch.clamp(y, -1.0, 1.0))


def stream_in_bfloat16(model: Any) -> None:
    """The residual stream goes through bfloat16 between two blocks."""
    block = model.transformer.h[1]
    block.register_forward_hook(lambda module, args, y: y.bfloat16().to(y.dtype))


# Gradient


class _Backward(torch.autograd.Function):
    """The identity, whose derivative is changed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.change(gradient), None


def _changed(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: _Backward.apply(x, change)  # type: ignore[no-any-return]


def one_head_learns_half(model: Any) -> None:
    """The derivative of the first head is halved, as where two devices hold it."""
    half = _changed(lambda g: torch.cat([g[:, :1] / 2, g[:, 1:]], dim=1))
    _attention(model, mix=half)


def last_neurons_learn_nothing(model: Any) -> None:
    """A backward kernel stops at a multiple of its tile."""
    width = 4 * model.config.n_embd - 8
    mask = (torch.arange(4 * model.config.n_embd) < width).float()
    learn = _changed(lambda g: g * mask.to(g.dtype))
    model.transformer.h[1].mlp.act = _ByNeuron(lambda x: _gelu(learn(x)))


def query_gradient_in_int8(model: Any) -> None:
    """The derivative of the queries goes through eight bits."""
    _attention(model, query=_changed(_to_int8))


def value_gradient_clipped(model: Any) -> None:
    """The derivative of the values is clipped, element by element."""
    _attention(model, value=_changed(lambda g: g.clamp(-1e-3, 1e-3)))
