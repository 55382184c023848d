"""Ports that compute something else the second time, are left in training mode, or change the
process that they run in. Each alters transformers' GPT-2 after it was loaded.

Not here are those of the catalogue (``verify/laws/determinism/faults.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _then(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    module.register_forward_hook(lambda module, args, output: change(output))


# Other bits


def noise_of_a_generator_of_its_own(model: Any) -> None:
    """Noise is added to one block, drawn from a generator that nobody else sees."""
    own = torch.Generator().manual_seed(0)
    _then(model.transformer.h[1].mlp, lambda x: x + 1e-6 * torch.randn(x.shape, generator=own))


def state_kept_between_calls(model: Any) -> None:
    """A running mean of what was seen is updated by every call, as batch norm in training does."""
    mean = torch.zeros(model.config.n_embd)

    def centre(x: Tensor) -> Tensor:
        mean.lerp_(x.mean((0, 1)), 0.1)
        return x - mean

    _then(model.transformer.h[0].mlp, centre)


def one_unit_every_other_call(model: Any) -> None:
    """A sum is taken in another order at every other call."""
    calls = [0]

    def exchange(x: Tensor) -> Tensor:
        calls[0] += 1
        return torch.nextafter(x, x + 1) if calls[0] % 2 else x

    _then(model.lm_head, exchange)


# Training mode


def left_in_training_mode(model: Any) -> None:
    """``model.eval()`` was forgotten."""
    model.train()


def one_dropout_left_on(model: Any) -> None:
    """One dropout was put back into training mode."""
    model.transformer.h[1].mlp.dropout.train()


def attention_left_in_training_mode(model: Any) -> None:
    """An attention that drops by itself was not reached by ``eval()``, its children were."""
    model.transformer.h[2].attn.training = True


def dropout_on_whatever_the_mode(model: Any) -> None:
    """``F.dropout(x, 0.1)``: its argument ``training`` is True where it is not given."""
    _then(model.transformer.h[1].mlp, lambda x: F.dropout(x, 0.1))


def attention_dropout_on_whatever_the_mode(model: Any) -> None:
    """``scaled_dot_product_attention(dropout_p=0.1)`` drops in evaluation mode as well."""
    attn = model.transformer.h[0].attn

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, attn.num_heads, attn.head_dim).transpose(1, 2)
            for part in attn.c_attn(x).split(width, dim=-1)
        )
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1)
        return attn.c_proj(mix.transpose(1, 2).reshape(batch, length, width)), None

    attn.forward = forward


# The process


def turns_derivatives_off(model: Any) -> None:
    """Every call turns derivatives off for the whole process."""

    def turn_off(module: nn.Module, args: Any) -> None:
        torch.set_grad_enabled(False)

    model.register_forward_pre_hook(turn_off)


def asks_for_deterministic_algorithms(model: Any) -> None:
    """Its loss makes torch refuse what is not deterministic, in every later port too."""
    loss = model.loss_function

    def with_flag(*args: Any, **kwargs: Any) -> Any:
        torch.use_deterministic_algorithms(True)
        return loss(*args, **kwargs)

    model.loss_function = with_flag
