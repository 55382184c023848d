"""A Llama as its authors' code is built, written from scratch: rotary positions as complex numbers.

A channel and its neighbour are the parts of one complex number here, while the checkpoint turns
channel i together with i + R/2. So the rows of the two matrices that make queries and keys are put
in another order on loading, as every converter between the two has to do. Nothing is said of that
to whoever judges it.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gpt_verify.checkpoint import Checkpoint


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint.path / "config.json").read_text("utf-8"))
    return found


def tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(checkpoint.tensors[name]))


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (i, i + R/2) of each head become rows (2i, 2i + 1)."""
    width = weight.shape[1]
    return weight.view(heads, 2, -1, width).transpose(1, 2).reshape(-1, width)


def stretched(frequencies: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    """Llama 3.1: slow turns are slowed by the factor, fast ones kept, with a ramp in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling["factor"]


def rotations(size: int, length: int, theta: float, scaling: dict[str, Any]) -> torch.Tensor:
    """One complex number of length 1 for each position and pair of channels."""
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(length).float(), stretched(frequencies, scaling))
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """[B, T, heads, K], each pair of neighbours turned."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by[:, None]).flatten(3).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self, gain: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(gain), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale).type_as(x) * self.weight


def linear(weight: torch.Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.contiguous())
    return made


class Attention(nn.Module):
    def __init__(self, checkpoint: Checkpoint, layer: int, keys: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.shared = keys["num_attention_heads"], keys["num_key_value_heads"]

        def stored(part: str) -> torch.Tensor:
            return tensor(checkpoint, f"h{layer}/attn/{part}/w").t()

        self.wq = linear(neighbours(stored("q"), self.heads))
        self.wk = linear(neighbours(stored("k"), self.shared))
        self.wv, self.wo = linear(stored("v")), linear(stored("o"))

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = rotate(self.wq(x).view(batch, length, self.heads, -1), by)
        k = rotate(self.wk(x).view(batch, length, self.shared, -1), by)
        v = self.wv(x).view(batch, length, self.shared, -1)
        q, k, v = (part.transpose(1, 2) for part in (q, self.spread(k), self.spread(v)))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if length > 1:
            scores = scores + torch.full((length, length), -torch.inf).triu(1).type_as(scores)
        pattern = F.softmax(scores.float(), dim=-1).type_as(q)
        return self.wo((pattern @ v).transpose(1, 2).reshape(batch, length, -1))

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """A head of keys or values for each head of queries: neighbours have the same."""
        times = self.heads // self.shared
        return x[:, :, :, None].expand(-1, -1, -1, times, -1).flatten(2, 3)


class FeedForward(nn.Module):
    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        super().__init__()
        parts = ("gate", "down", "up")
        weights = [tensor(checkpoint, f"h{layer}/mlp/{part}/w").t() for part in parts]
        self.w1, self.w2, self.w3 = map(linear, weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, checkpoint: Checkpoint, layer: int, keys: dict[str, Any]) -> None:
        super().__init__()
        self.attention = Attention(checkpoint, layer, keys)
        self.feed_forward = FeedForward(checkpoint, layer)
        gains = (tensor(checkpoint, f"h{layer}/{ln}/g") for ln in ("ln_1", "ln_2"))
        self.attention_norm, self.ffn_norm = (RMSNorm(g, keys["rms_norm_eps"]) for g in gains)

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), by)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        keys = settings(checkpoint)
        self.tok_embeddings = nn.Embedding.from_pretrained(tensor(checkpoint, "wte"), False)
        layers = range(keys["num_hidden_layers"])
        self.layers = nn.ModuleList(Block(checkpoint, layer, keys) for layer in layers)
        self.norm = RMSNorm(tensor(checkpoint, "ln_f/g"), keys["rms_norm_eps"])
        self.output = linear(tensor(checkpoint, checkpoint.config.head))
        self.longest = keys["max_position_embeddings"]
        # No buffer: ``module.to(torch.bfloat16)`` would take its imaginary part away.
        self.rotations = rotations(
            keys["head_dim"], self.longest, keys["rope_theta"], keys["rope_scaling"]
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] > self.longest:
            raise ValueError(f"{tokens.shape[1]} tokens; there are {self.longest} positions")
        by = self.rotations[: tokens.shape[1]].to(tokens.device)
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, by)
        return self.output(self.norm(x))


def llama(checkpoint: Checkpoint) -> nn.Module:
    return Llama(checkpoint)
