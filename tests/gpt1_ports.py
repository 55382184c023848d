"""Ports of the first GPT with one known mistake each: transformers' model, altered once loaded."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.ports.huggingface import huggingface


def right(checkpoint: Checkpoint) -> Any:
    return huggingface(checkpoint, "eager").module


def norms_first(checkpoint: Checkpoint) -> Any:
    """The block of GPT-2."""

    def forward(self: Any, x: Any, attention_mask: Any = None, **options: Any) -> list[Any]:
        out, *more = self.attn(self.ln_1(x), attention_mask=attention_mask, **options)
        x = x + out
        return [x + self.mlp(self.ln_2(x)), *more]

    model = right(checkpoint)
    for block in model.transformer.h:
        block.forward = types.MethodType(forward, block)
    return model


class _NormedAtTheEnd(nn.Module):
    """A body with one layer norm more."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.ln_f = body, nn.LayerNorm(width)

    def forward(self, *args: Any, **options: Any) -> Any:
        output = self.body(*args, **options)
        output.last_hidden_state = self.ln_f(output.last_hidden_state)
        return output


def final_norm(checkpoint: Checkpoint) -> Any:
    """The end of GPT-2, with a gain of 1 and a bias of 0."""
    model = right(checkpoint)
    model.transformer = _NormedAtTheEnd(model.transformer, checkpoint.config.n_embd)
    return model


def own_head(checkpoint: Checkpoint) -> Any:
    """A head that is not the table."""
    model = right(checkpoint)
    torch.manual_seed(0)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def exact_gelu(checkpoint: Checkpoint) -> Any:
    model = right(checkpoint)
    for block in model.transformer.h:
        block.mlp.act = nn.GELU()
    return model


def small_epsilon(checkpoint: Checkpoint) -> Any:
    model = right(checkpoint)
    for block in model.transformer.h:
        block.ln_1.eps = block.ln_2.eps = 1e-6
    return model


def uncentred(checkpoint: Checkpoint) -> Any:
    """Root-mean-square norms: a constant that is added to the stream is not taken away."""

    def forward(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) + self.bias

    model = right(checkpoint)
    for block in model.transformer.h:
        for norm in (block.ln_1, block.ln_2):
            norm.forward = types.MethodType(forward, norm)
    return model


def unscaled_scores(checkpoint: Checkpoint) -> Any:
    model = right(checkpoint)
    for block in model.transformer.h:
        block.attn.scale = False
    return model


def shifted_positions(checkpoint: Checkpoint) -> Any:
    model = right(checkpoint)
    table = model.transformer.positions_embed.weight
    with torch.no_grad():
        table.copy_(torch.roll(table, 1, 0))
    return model


def reads_its_table_twice(checkpoint: Checkpoint) -> Any:
    """A tied model, where the checkpoint has a head of its own."""
    model = right(checkpoint)
    model.lm_head.weight = model.transformer.tokens_embed.weight
    return model


def first_for_second(checkpoint: Checkpoint) -> Any:
    """GPT, with the weights of a GPT-2, of which it has no last norm."""
    config = replace(checkpoint.config, architecture="openai-gpt")
    return right(replace(checkpoint, config=config))


def second_for_first(checkpoint: Checkpoint) -> Any:
    """GPT-2, with the weights of a GPT, and a last norm that does as little as it can."""
    config = replace(checkpoint.config, architecture="gpt2")
    ones = np.ones(config.n_embd, np.float32)
    tensors = {**checkpoint.tensors, "ln_f/g": ones, "ln_f/b": 0 * ones}
    return right(replace(checkpoint, config=config, tensors=tensors))


def _function(model: Any) -> Any:
    """Nothing but logits."""

    def logits(tokens: Any) -> Any:
        with torch.no_grad():
            return model(torch.as_tensor(tokens)).logits.numpy()

    return logits


def function(checkpoint: Checkpoint) -> Any:
    return _function(right(checkpoint))


def function_norms_first(checkpoint: Checkpoint) -> Any:
    return _function(norms_first(checkpoint))


def function_exact_gelu(checkpoint: Checkpoint) -> Any:
    return _function(exact_gelu(checkpoint))


class Functional(nn.Module):
    """GPT written by hand, with names of its own, without a class for its parts."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.heads, self.layers = checkpoint.config.n_head, checkpoint.config.n_layer
        self.head = checkpoint.config.head
        self.w = nn.ParameterDict(
            {
                name.replace("/", "_"): nn.Parameter(torch.from_numpy(np.array(value)))
                for name, value in checkpoint.tensors.items()
            }
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        w, length = self.w, ids.shape[1]
        x = w["wte"][ids] + w["wpe"][:length]
        for layer in range(self.layers):
            at = f"h{layer}"
            x = self._norm(x + self._attend(x, f"{at}_attn"), f"{at}_ln_1")
            hidden = x @ w[f"{at}_mlp_c_fc_w"] + w[f"{at}_mlp_c_fc_b"]
            hidden = nn.functional.gelu(hidden, approximate="tanh")
            out = hidden @ w[f"{at}_mlp_c_proj_w"] + w[f"{at}_mlp_c_proj_b"]
            x = self._norm(x + out, f"{at}_ln_2")
        return x @ w[self.head].T

    def _norm(self, x: torch.Tensor, at: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return centred * scale * self.w[f"{at}_g"] + self.w[f"{at}_b"]

    def _attend(self, x: torch.Tensor, at: str) -> torch.Tensor:
        qkv = x @ self.w[f"{at}_c_attn_w"] + self.w[f"{at}_c_attn_b"]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        mix = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mix.transpose(1, 2).flatten(2) @ self.w[f"{at}_c_proj_w"] + self.w[f"{at}_c_proj_b"]


def functional(checkpoint: Checkpoint) -> nn.Module:
    return Functional(checkpoint)
