"""Correct GPT-2s as people write them: modules with parameters of their own, one style each.

Every factory takes a checkpoint and returns a module that computes the same function; they differ
in how weights are stored and named, in which operations they call, and in what they return.
``functional_styles`` has those that are written as functions.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from gpt_verify.checkpoint import Checkpoint


def tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A copy, so that no style can write into the checkpoint."""
    return torch.from_numpy(np.array(checkpoint.tensors[name]))


def set_linear(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """``[in, out]`` into torch's ``[out, in]``."""
    linear.weight = nn.Parameter(weight.t().contiguous())
    linear.bias = nn.Parameter(bias.clone())
    return linear


def linear(checkpoint: Checkpoint, scope: str) -> nn.Linear:
    weight = tensor(checkpoint, f"{scope}/w")
    return set_linear(nn.Linear(*weight.shape), weight, tensor(checkpoint, f"{scope}/b"))


def norm(checkpoint: Checkpoint, scope: str) -> nn.LayerNorm:
    made = nn.LayerNorm(checkpoint.config.n_embd, eps=1e-5)
    made.weight = nn.Parameter(tensor(checkpoint, f"{scope}/g"))
    made.bias = nn.Parameter(tensor(checkpoint, f"{scope}/b"))
    return made


def embedding(checkpoint: Checkpoint, name: str) -> nn.Embedding:
    return nn.Embedding.from_pretrained(tensor(checkpoint, name), freeze=False)


class Model(nn.Module):
    """Token and position embedding, blocks, final norm, tied head; blocks differ by style."""

    def __init__(self, checkpoint: Checkpoint, block: type[nn.Module]) -> None:
        super().__init__()
        self.wte, self.wpe = embedding(checkpoint, "wte"), embedding(checkpoint, "wpe")
        layers = range(checkpoint.config.n_layer)
        self.blocks = nn.ModuleList(block(checkpoint, f"h{i}") for i in layers)
        self.final_norm = norm(checkpoint, "ln_f")
        self.head = nn.Linear(*reversed(self.wte.weight.shape), bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


class SplitBlock(nn.Module):
    """q, k and v as three nn.Linear; the mask is a buffer; attention written out."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__()
        config = checkpoint.config
        self.heads = config.n_head
        self.ln_1, self.ln_2 = norm(checkpoint, f"{scope}/ln_1"), norm(checkpoint, f"{scope}/ln_2")
        weights = tensor(checkpoint, f"{scope}/attn/c_attn/w").chunk(3, dim=1)
        biases = tensor(checkpoint, f"{scope}/attn/c_attn/b").chunk(3)
        self.query, self.key, self.value = (
            set_linear(nn.Linear(config.n_embd, config.n_embd), w, b)
            for w, b in zip(weights, biases, strict=True)
        )
        self.out_proj = linear(checkpoint, f"{scope}/attn/c_proj")
        self.fc_in = linear(checkpoint, f"{scope}/mlp/c_fc")
        self.fc_out = linear(checkpoint, f"{scope}/mlp/c_proj")
        causal = torch.ones(config.n_ctx, config.n_ctx).tril()
        self.register_buffer("mask", causal, persistent=False)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        length = x.shape[1]
        scores = scores.masked_fill(self.mask[:length, :length] == 0, -math.inf)
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc_out(F.gelu(self.fc_in(x), approximate="tanh"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def split_linears(checkpoint: Checkpoint) -> nn.Module:
    return Model(checkpoint, SplitBlock)


class FusedBlock(SplitBlock):
    """One nn.Linear for q, k and v; torch's fused attention; residuals in place."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        del self.query, self.key, self.value, self.mask
        self.qkv = linear(checkpoint, f"{scope}/attn/c_attn")

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, dim=-1))
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mix.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.attend(self.ln_1(x))
        x += self.mlp(self.ln_2(x))
        return x


def fused_in_place(checkpoint: Checkpoint) -> nn.Module:
    return Model(checkpoint, FusedBlock)


class HandWrittenNorm(nn.Module):
    """Mean, variance, root, gain and bias as separate operations."""

    def __init__(self, original: nn.LayerNorm) -> None:
        super().__init__()
        self.gain, self.shift = original.weight, original.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return self.gain * ((x - mean) / torch.sqrt(variance + 1e-5)) + self.shift


class HandWrittenBlock(FusedBlock):
    """Nothing from torch.nn.functional; a mask of the smallest finite number."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        self.ln_1, self.ln_2 = HandWrittenNorm(self.ln_1), HandWrittenNorm(self.ln_2)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, dim=-1))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        length = x.shape[1]
        future = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        scores = scores + future
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        mix = (weights / weights.sum(-1, keepdim=True)) @ v
        return self.out_proj(mix.transpose(1, 2).flatten(2))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc_in(x)
        inner = math.sqrt(2 / math.pi) * (h + 0.044715 * torch.pow(h, 3))
        return self.fc_out(0.5 * h * (1 + torch.tanh(inner)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attend(self.ln_1(x)) + x
        return self.mlp(self.ln_2(x)) + x


def hand_written(checkpoint: Checkpoint) -> nn.Module:
    model = Model(checkpoint, HandWrittenBlock)
    model.final_norm = HandWrittenNorm(model.final_norm)
    return model


class UpcastingBlock(FusedBlock):
    """Layer norm and softmax in float32 whatever the model's own precision; a mask of -1e4."""

    def normed(self, layer: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        wide = F.layer_norm(x.float(), x.shape[-1:], layer.weight.float(), layer.bias.float(), 1e-5)
        return wide.to(x.dtype)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, dim=-1))
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = torch.where(future, torch.tensor(-1e4, dtype=scores.dtype), scores)
        pattern = F.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
        return self.out_proj((pattern @ v).transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.normed(self.ln_1, x))
        return x + self.mlp(self.normed(self.ln_2, x))


def upcasting(checkpoint: Checkpoint) -> nn.Module:
    return Model(checkpoint, UpcastingBlock)


class Recomputing(Model):
    """Activation checkpointing, and a dictionary as the output."""

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = recompute(block, x, use_reentrant=False)
        return {"loss": None, "logits": self.head(self.final_norm(x))}


def recomputing(checkpoint: Checkpoint) -> nn.Module:
    return Recomputing(checkpoint, SplitBlock)


class TimeFirst(Model):
    """[T, B, D] inside, as torch's own transformers once had it."""

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.wte(ids.t()) + self.wpe(torch.arange(ids.shape[1])).unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        return (self.head(self.final_norm(x)).transpose(0, 1), None)


class TimeFirstBlock(FusedBlock):
    def attend(self, x: torch.Tensor) -> torch.Tensor:
        length, rows, width = x.shape
        q, k, v = (
            part.reshape(length, rows * self.heads, -1).transpose(0, 1)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        future = torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
        scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=(width // self.heads) ** -0.5)
        mix = torch.bmm(torch.softmax(scores, -1), v)
        return self.out_proj(mix.transpose(0, 1).reshape(length, rows, width))


def time_first(checkpoint: Checkpoint) -> nn.Module:
    return TimeFirst(checkpoint, TimeFirstBlock)


class RowByRow(Model):
    """One sequence at a time, without a batch axis."""

    def forward(self, ids: torch.Tensor) -> Any:
        rows = [super(RowByRow, self).forward(row.unsqueeze(0)).squeeze(0) for row in ids]
        return SimpleNamespace(logits=torch.stack(rows))


def row_by_row(checkpoint: Checkpoint) -> nn.Module:
    return RowByRow(checkpoint, FusedBlock)


class LibraryModel(Model):
    """torch's own encoder layer, norm first, with a causal mask."""

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]).to(x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return [self.head(self.final_norm(x))]


def _library_block(checkpoint: Checkpoint, scope: str) -> nn.Module:
    config = checkpoint.config
    made = nn.TransformerEncoderLayer(
        config.n_embd,
        config.n_head,
        4 * config.n_embd,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    fused = linear(checkpoint, f"{scope}/attn/c_attn")
    made.self_attn.in_proj_weight, made.self_attn.in_proj_bias = fused.weight, fused.bias
    out = linear(checkpoint, f"{scope}/attn/c_proj")
    made.self_attn.out_proj.weight, made.self_attn.out_proj.bias = out.weight, out.bias
    made.linear1 = linear(checkpoint, f"{scope}/mlp/c_fc")
    made.linear2 = linear(checkpoint, f"{scope}/mlp/c_proj")
    made.norm1, made.norm2 = norm(checkpoint, f"{scope}/ln_1"), norm(checkpoint, f"{scope}/ln_2")
    return made


def library(checkpoint: Checkpoint) -> nn.Module:
    return LibraryModel(checkpoint, _library_block)  # type: ignore[arg-type]
