"""A Qwen 3 as engines keep one, written from scratch: as few matrices as there can be.

Queries, keys and values are one product, gate and up another; heads share keys and values by a flag
of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from llama_port import linear, settings, tensor
from torch import nn
from torch.nn import functional as F

from gpt_verify.checkpoint import Checkpoint


class Norm(nn.Module):
    """Over the last axis, be it the stream or one head."""

    def __init__(self, gain: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.gain, self.epsilon = nn.Parameter(gain), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (len(self.gain),), self.gain, self.epsilon)


class Rotary(nn.Module):
    """Cosines and sines of all positions, for the first and the second half of a head alike."""

    def __init__(self, size: int, length: int, theta: float) -> None:
        super().__init__()
        frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


class Layer(nn.Module):
    def __init__(self, checkpoint: Checkpoint, at: str, keys: dict[str, Any]) -> None:
        super().__init__()
        heads, shared = keys["num_attention_heads"], keys["num_key_value_heads"]
        self.sizes, self.inner = (heads, shared, shared), keys["intermediate_size"]
        self.checkpoint, self.at, self.epsilon = checkpoint, at, keys.get("rms_norm_eps", 1e-6)
        self.qkv_proj = self.joined("attn/q", "attn/k", "attn/v")
        self.gate_up_proj = self.joined("mlp/gate", "mlp/up")
        self.o_proj, self.down_proj = self.joined("attn/o"), self.joined("mlp/down")
        self.norm_in, self.norm_mid = self.norm("ln_1"), self.norm("ln_2")
        self.norm_q, self.norm_k = self.norm("attn/q_norm"), self.norm("attn/k_norm")

    def joined(self, *parts: str) -> nn.Module:
        weights = [tensor(self.checkpoint, f"{self.at}/{part}/w").t() for part in parts]
        return linear(torch.cat(weights))

    def norm(self, name: str) -> nn.Module:
        return Norm(tensor(self.checkpoint, f"{self.at}/{name}/g"), self.epsilon)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, T, D] → queries, keys and values, each [B, heads, T, K]."""
        return self.split(*self.parts(self.qkv_proj(x)))

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What lies side by side in the last axis: of queries, of keys, of values."""
        size = x.shape[-1] // sum(self.sizes)
        return x.split([n * size for n in self.sizes], dim=-1)

    def split(self, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        each = zip(parts, self.sizes, strict=True)
        return tuple(part.unflatten(-1, (n, -1)).transpose(1, 2) for part, n in each)

    def attend(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        q, k, v = self.heads(x)
        q, k = rotary(self.norm_q(q)), rotary(self.norm_k(k))
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mix.transpose(1, 2).flatten(2))

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).split(self.inner, dim=-1)
        return F.silu(gate) * up

    def forward(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        x = x + self.attend(self.norm_in(x), rotary)
        return x + self.down_proj(self.gated(self.norm_mid(x)))


class Qwen3(nn.Module):
    def __init__(self, checkpoint: Checkpoint, layer: type[Layer] = Layer) -> None:
        super().__init__()
        keys = settings(checkpoint)
        self.tokens = nn.Embedding.from_pretrained(tensor(checkpoint, "wte"), False)
        layers = range(keys["num_hidden_layers"])
        self.layers = nn.ModuleList(layer(checkpoint, f"h{i}", keys) for i in layers)
        self.norm = Norm(tensor(checkpoint, "ln_f/g"), keys.get("rms_norm_eps", 1e-6))
        self.head = linear(tensor(checkpoint, checkpoint.config.head))
        size = keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"]
        self.rotary = Rotary(size, keys["max_position_embeddings"], keys["rope_theta"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.rotary)
        return self.head(self.norm(x))


def qwen3(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint)
