"""Ports that compute the correct logits and train on wrong derivatives.

Each function alters transformers' GPT-2 after it was loaded.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def _replace_forward(module: nn.Module, forward: Any) -> None:
    module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]


class _Scaled(torch.autograd.Function):
    """The identity, whose derivative is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The same, with that derivative."""
    made: torch.Tensor = _Scaled.apply(x, factor)
    return made


class _StraightThrough(torch.autograd.Function):
    """GELU whose derivative is taken to be 1."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient


class _ExactDerivative(torch.autograd.Function):
    """GELU by its tanh approximation, with the derivative of the exact form."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
        return gradient * (0.5 * (1 + torch.erf(x / 2**0.5)) + x * density)


class _Activation(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function.apply(x)  # type: ignore[no-any-return]


def residual_branch_detached(model: Any) -> None:
    """What the MLP of one block adds to the residual stream is detached."""
    model.transformer.h[1].mlp.register_forward_hook(lambda module, args, y: y.detach())


def norm_statistics_detached(model: Any) -> None:
    """A layer norm whose mean and variance count as constants."""

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True).detach()
        deviation = (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt().detach()
        return norm.weight * ((x - mean) / deviation) + norm.bias

    _replace_forward(model.transformer.h[1].ln_2, forward)


def straight_through_activation(model: Any) -> None:
    """The derivative of GELU is left out."""
    model.transformer.h[2].mlp.act = _Activation(_StraightThrough)


def derivative_of_another_activation(model: Any) -> None:
    """A fused kernel: the tanh approximation forwards, the derivative of the erf form backwards."""
    for block in model.transformer.h:
        block.mlp.act = _Activation(_ExactDerivative)


def frozen_matrix(model: Any) -> None:
    """One matrix is read detached, so that it is never trained."""

    def forward(linear: Any, x: torch.Tensor) -> torch.Tensor:
        return x @ linear.weight.detach() + linear.bias

    _replace_forward(model.transformer.h[1].mlp.c_fc, forward)


def gradient_scaled(model: Any) -> None:
    """The derivative is halved between two blocks, as loss scaling that was undone twice would."""
    model.transformer.h[1].register_forward_hook(
        lambda module, args, y: (
            (_Scaled.apply(y[0], 0.5), *y[1:]) if isinstance(y, tuple) else _Scaled.apply(y, 0.5)
        )
    )


def sum_of_losses(model: Any) -> None:
    """Everything is scaled alike at the logits, as where the loss is summed instead of averaged."""
    model.lm_head.register_forward_hook(lambda module, args, y: _Scaled.apply(y, 16.0))


def _attention(model: Any, change: Any) -> None:
    """Attention written out, with ``change(q, k, v, pattern)``."""

    def forward(attn: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batch, length, width = x.shape
        heads = (batch, length, attn.num_heads, attn.head_dim)
        parts = attn.c_attn(x).split(width, dim=-1)
        q, k, v = (part.view(heads).transpose(1, 2) for part in parts)
        mix = change(q, k, v, attn.scaling)
        return attn.c_proj(mix.transpose(1, 2).reshape(batch, length, width)), None

    _replace_forward(model.transformer.h[1].attn, forward)


def _pattern(q: torch.Tensor, k: torch.Tensor, scaling: float) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) * scaling
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)


def pattern_detached(model: Any) -> None:
    """The attention pattern counts as a constant."""
    _attention(model, lambda q, k, v, scaling: _pattern(q, k, scaling).detach() @ v)


def key_detached(model: Any) -> None:
    """Keys come from a cache that holds no graph."""
    _attention(model, lambda q, k, v, scaling: _pattern(q, k.detach(), scaling) @ v)


def counted_twice(model: Any) -> None:
    """A recomputed matrix adds its gradient once more, as a checkpoint that runs twice does."""

    def forward(linear: Any, x: torch.Tensor) -> torch.Tensor:
        again = x.detach() @ linear.weight
        return x @ linear.weight + linear.bias + (again - again.detach())

    _replace_forward(model.transformer.h[1].attn.c_proj, forward)


def double_backward_of_a_block(model: Any) -> None:
    """Every parameter of a block gets its gradient twice, and what comes before it once."""

    block = model.transformer.h[1]
    inner = block.forward

    def forward(block: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        y = inner(x, *args, **kwargs)
        again = inner(x.detach(), *args, **kwargs)
        if isinstance(y, tuple):
            return (y[0] + (again[0] - again[0].detach()), *y[1:])
        return y + (again - again.detach())

    _replace_forward(block, forward)
