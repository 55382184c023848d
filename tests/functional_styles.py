"""Correct GPT-2s written as functions over a table of weights, and one without torch at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_styles import tensor

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.reference import tensor_table


class Table(nn.Module):
    """The checkpoint's tensors in one nn.ParameterDict, which the root reads."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.config = checkpoint.config
        self.weights = nn.ParameterDict(
            {name.replace("/", "_"): tensor(checkpoint, name) for name in tensor_table(self.config)}
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.weights[name]

    def norm(self, x: torch.Tensor, scope: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{scope}_g"], self[f"{scope}_b"], 1e-5)


class Functional(Table):
    """torch.nn.functional throughout, with the transposes that it wants."""

    def linear(self, x: torch.Tensor, scope: str) -> torch.Tensor:
        return F.linear(x, self[f"{scope}_w"].t(), self[f"{scope}_b"])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        x = F.embedding(ids, self["wte"]) + F.embedding(torch.arange(length), self["wpe"])
        for i in range(self.config.n_layer):
            qkv = self.linear(self.norm(x, f"h{i}_ln_1"), f"h{i}_attn_c_attn")
            q, k, v = qkv.view(batch, length, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)
            mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            mix = mix.transpose(1, 2).reshape(batch, length, -1)
            x = x + self.linear(mix, f"h{i}_attn_c_proj")
            pre = self.linear(self.norm(x, f"h{i}_ln_2"), f"h{i}_mlp_c_fc")
            x = x + self.linear(F.gelu(pre, approximate="tanh"), f"h{i}_mlp_c_proj")
        return F.linear(self.norm(x, "ln_f"), self["wte"])


def functional(checkpoint: Checkpoint) -> nn.Module:
    return Functional(checkpoint)


class Einsum(Table):
    """Everything a contraction, biases apart, and no head axis moved."""

    def linear(self, x: torch.Tensor, scope: str) -> torch.Tensor:
        return torch.einsum("bti,io->bto", x, self[f"{scope}_w"]) + self[f"{scope}_b"]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        heads = self.config.n_head
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        x = self["wte"][ids] + self["wpe"][:length]
        for i in range(self.config.n_layer):
            qkv = self.linear(self.norm(x, f"h{i}_ln_1"), f"h{i}_attn_c_attn")
            q, k, v = (
                part.reshape(batch, length, heads, -1) for part in qkv.split(x.shape[-1], -1)
            )
            scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
            pattern = torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1)
            mix = torch.einsum("bhts,bshk->bthk", pattern, v).reshape(batch, length, -1)
            x = x + self.linear(mix, f"h{i}_attn_c_proj")
            pre = self.linear(self.norm(x, f"h{i}_ln_2"), f"h{i}_mlp_c_fc")
            x = x + self.linear(F.gelu(pre, approximate="tanh"), f"h{i}_mlp_c_proj")
        return torch.einsum("btd,vd->btv", self.norm(x, "ln_f"), self["wte"])


def einsum(checkpoint: Checkpoint) -> nn.Module:
    return Einsum(checkpoint)


class Nameless(nn.Module):
    """p0, p1 … in an order of no meaning; flat rows; ``x @ w + b``; one-hot lookup."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.config = checkpoint.config
        self.order = np.random.default_rng(3).permutation(list(tensor_table(self.config))).tolist()
        for i, name in enumerate(self.order):
            self.register_parameter(f"p{i}", nn.Parameter(tensor(checkpoint, name)))

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = getattr(self, f"p{self.order.index(name)}")
        return found

    def norm(self, x: torch.Tensor, scope: str) -> torch.Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self[f"{scope}/g"] + self[f"{scope}/b"]

    def linear(self, x: torch.Tensor, scope: str) -> torch.Tensor:
        return x @ self[f"{scope}/w"] + self[f"{scope}/b"]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        heads, size = self.config.n_head, self.config.head_size
        one_hot = F.one_hot(ids.flatten(), self.config.n_vocab).to(self["wte"].dtype)
        x = one_hot @ self["wte"] + self["wpe"][:length].repeat(batch, 1)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for i in range(self.config.n_layer):
            qkv = self.linear(self.norm(x, f"h{i}/ln_1"), f"h{i}/attn/c_attn")
            q, k, v = qkv.view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
            scores = (q @ k.mT * size**-0.5).masked_fill(future, torch.finfo(q.dtype).min)
            mix = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch * length, -1)
            x = x + self.linear(mix, f"h{i}/attn/c_proj")
            pre = self.linear(self.norm(x, f"h{i}/ln_2"), f"h{i}/mlp/c_fc")
            x = x + self.linear(F.gelu(pre, approximate="tanh"), f"h{i}/mlp/c_proj")
        return (self.norm(x, "ln_f") @ self["wte"].t()).view(batch, length, -1)


def nameless(checkpoint: Checkpoint) -> nn.Module:
    return Nameless(checkpoint)


class ConvBlock(nn.Module):
    """Convolutions over one position, as in the first GPT's port: [out, in, 1], channels first."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__()
        self.heads = checkpoint.config.n_head
        for name in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
            weight = tensor(checkpoint, f"{scope}/{name}/w")
            made = nn.Conv1d(*weight.shape, kernel_size=1)
            made.weight = nn.Parameter(weight.t().contiguous().unsqueeze(-1))
            made.bias = nn.Parameter(tensor(checkpoint, f"{scope}/{name}/b"))
            setattr(self, name.replace("/", "_"), made)
        for name in ("ln_1", "ln_2"):
            gain, bias = (tensor(checkpoint, f"{scope}/{name}/{leaf}") for leaf in "gb")
            made = nn.LayerNorm(len(gain), eps=1e-5)
            made.weight, made.bias = nn.Parameter(gain), nn.Parameter(bias)
            setattr(self, name, made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.attn_c_attn(self.ln_1(x).transpose(1, 2)).transpose(1, 2)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in qkv.chunk(3, -1))
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.attn_c_proj(mix.transpose(1, 2)).transpose(1, 2)
        pre = self.mlp_c_fc(self.ln_2(x).transpose(1, 2))
        return x + self.mlp_c_proj(F.gelu(pre, approximate="tanh")).transpose(1, 2)


def convolutions(checkpoint: Checkpoint) -> nn.Module:
    from torch_styles import Model

    return Model(checkpoint, ConvBlock)


def numpy_function(checkpoint: Checkpoint) -> Callable[[Any], Any]:
    """No module at all: float32 NumPy, written anew."""
    w: Mapping[str, np.ndarray] = checkpoint.tensors
    config = checkpoint.config

    def norm(x: np.ndarray, scope: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True, dtype=np.float32)
        deviation = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5))
        return x / deviation * w[f"{scope}/g"] + w[f"{scope}/b"]

    def linear(x: np.ndarray, scope: str) -> np.ndarray:
        return x @ w[f"{scope}/w"] + w[f"{scope}/b"]

    def gelu(x: np.ndarray) -> np.ndarray:
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
        return np.float32(0.5) * x * (1 + np.tanh(inner))

    def logits(tokens: np.ndarray) -> np.ndarray:
        batch, length = tokens.shape
        x = w["wte"][tokens] + w["wpe"][:length]
        for i in range(config.n_layer):
            qkv = linear(norm(x, f"h{i}/ln_1"), f"h{i}/attn/c_attn")
            parts = qkv.reshape(batch, length, 3, config.n_head, -1).transpose(2, 0, 3, 1, 4)
            scores = parts[0] @ parts[1].swapaxes(-1, -2) / np.float32(math.sqrt(config.head_size))
            scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-1e10))
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mix = weights / weights.sum(-1, keepdims=True) @ parts[2]
            mix = mix.transpose(0, 2, 1, 3).reshape(batch, length, -1)
            x = x + linear(mix, f"h{i}/attn/c_proj")
            x = x + linear(
                gelu(linear(norm(x, f"h{i}/ln_2"), f"h{i}/mlp/c_fc")), f"h{i}/mlp/c_proj"
            )
        return norm(x, "ln_f") @ w["wte"].T

    return logits
