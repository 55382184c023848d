"""Other ways to keep several matrices as one, each as somebody's engine or file has it.

All are the Qwen 3 of ``qwen3_port`` but for that, and one is a Qwen 2.
"""

from __future__ import annotations

from typing import Any

import torch
from llama_port import linear, settings
from qwen3_port import Layer, Qwen3, Rotary
from torch import nn
from torch.nn import functional as F

from gpt_verify.checkpoint import Checkpoint


class InTurns(Layer):
    """A column of gate and one of up alternate."""

    def joined(self, *parts: str) -> nn.Module:
        made = super().joined(*parts)
        if parts[-1] == "mlp/up":
            rows = made.weight.data.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
            made.weight.data = rows.contiguous()
        return made

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        both = self.gate_up_proj(x)
        return F.silu(both[..., ::2]) * both[..., 1::2]


class ByGroup(Layer):
    """The queries of each group, and then its key and its value."""

    def joined(self, *parts: str) -> nn.Module:
        made = super().joined(*parts)
        if parts[0] == "attn/q":
            heads = made.weight.data.unflatten(0, (sum(self.sizes), -1)).split(self.sizes)
            groups = self.sizes[1]
            by_group = [part.unflatten(0, (groups, -1)) for part in heads]
            made.weight.data = torch.cat(by_group, dim=1).flatten(0, 2).contiguous()
        return made

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n, groups = self.sizes[0] // self.sizes[1], self.sizes[1]
        by_group = self.qkv_proj(x).unflatten(-1, (groups, n + 2, -1))
        q, k, v = by_group.split((n, 1, 1), dim=3)
        return tuple(part.flatten(2, 3).transpose(1, 2) for part in (q, k, v))


class Tiled(Layer):
    """Query heads that read the first key are not neighbours, but every other one or so: heads of
    keys are repeated as a whole, and queries and what reads them stand in that order."""

    def joined(self, *parts: str) -> nn.Module:
        made = super().joined(*parts)
        heads, groups, _ = self.sizes
        order = torch.arange(heads).view(groups, -1).t().flatten()
        if parts[0] == "attn/q":
            each = made.weight.data.unflatten(0, (sum(self.sizes), -1))
            made.weight.data = torch.cat([each[order], each[heads:]]).flatten(0, 1).contiguous()
        if parts[0] == "attn/o":
            each = made.weight.data.unflatten(1, (heads, -1))
            made.weight.data = each[:, order].flatten(1).contiguous()
        return made

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = super().heads(x)
        times = self.sizes[0] // self.sizes[1]
        return q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)


class Product(nn.Module):
    """A matrix [in, out], whose bias is added afterwards."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.w = nn.Parameter(weight.contiguous())
        self.b = None if bias is None else nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = x @ self.w
        return made if self.b is None else made + self.b


class InByOut(Layer):
    def joined(self, *parts: str) -> nn.Module:
        return Product(super().joined(*parts).weight.data.t(), None)


class WithBias(Layer):
    """Qwen 2: biases of queries, keys and values, and no norms of them."""

    def joined(self, *parts: str) -> nn.Module:
        made = super().joined(*parts)
        names = [f"{self.at}/{part}/b" for part in parts]
        if names[0] in self.checkpoint.tensors:
            biases = [torch.from_numpy(self.checkpoint.tensors[name].copy()) for name in names]
            made.bias = nn.Parameter(torch.cat(biases))
        return made

    def norm(self, name: str) -> nn.Module:
        return nn.Identity() if name.startswith("attn/") else super().norm(name)


class WithBiasAfterwards(WithBias):
    def joined(self, *parts: str) -> nn.Module:
        made = super().joined(*parts)
        return Product(made.weight.data.t(), made.bias)


class KeysAndValues(WithBias):
    """Keys and values are one product, and queries another."""

    def __init__(self, checkpoint: Checkpoint, at: str, keys: dict[str, Any]) -> None:
        super().__init__(checkpoint, at, keys)
        whole, size = self.qkv_proj, self.qkv_proj.weight.shape[0] // sum(self.sizes)
        borders = [self.sizes[0] * size, 2 * self.sizes[1] * size]
        self.q_proj, self.kv_proj = map(linear, whole.weight.data.split(borders))
        biases = whole.bias.data.split(borders)
        self.q_proj.bias, self.kv_proj.bias = (nn.Parameter(bias.clone()) for bias in biases)
        del self.qkv_proj

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.split(self.q_proj(x), *self.kv_proj(x).chunk(2, dim=-1))


class BiasesApart(WithBias):
    """One matrix, whose three biases are added to the parts of its product."""

    def __init__(self, checkpoint: Checkpoint, at: str, keys: dict[str, Any]) -> None:
        super().__init__(checkpoint, at, keys)
        biases = self.parts(self.qkv_proj.bias.data)
        self.biases = nn.ParameterList(nn.Parameter(bias.clone()) for bias in biases)
        self.qkv_proj.bias = None

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = zip(self.parts(self.qkv_proj(x)), self.biases, strict=True)
        return self.split(*(part + bias for part, bias in parts))


class BySlices(Layer):
    """One matrix of queries, keys and values, of which two slices are multiplied with."""

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weight = self.qkv_proj.weight
        queries = weight.shape[0] // sum(self.sizes) * self.sizes[0]
        q, rest = F.linear(x, weight[:queries]), F.linear(x, weight[queries:])
        return self.split(q, *rest.chunk(2, dim=-1))


class OtherNeurons(Layer):
    """The channels of the MLP in another order."""

    def joined(self, *parts: str) -> nn.Module:
        made = super().joined(*parts)
        order = torch.arange(self.inner).roll(7).flip(0)
        if parts[0] == "mlp/gate":
            rows = made.weight.data.unflatten(0, (2, -1))[:, order].flatten(0, 1)
            made.weight.data = rows.contiguous()
        if parts[0] == "mlp/down":
            made.weight.data = made.weight.data[:, order].contiguous()
        return made


def by_pairs(rows: torch.Tensor, axis: int) -> torch.Tensor:
    """Channels (i, i + R/2) of a head become (2i, 2i + 1)."""
    halves = rows.unflatten(axis, (2, -1))
    return halves.transpose(axis, axis + 1).flatten(axis, axis + 1).contiguous()


class RotaryOfPairs(Rotary):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length, half = x.shape[-2], x.shape[-1] // 2
        cos, sin = self.cos[:length, :half], self.sin[:length, :half]
        first, second = x[..., ::2], x[..., 1::2]
        turned = first * cos - second * sin, second * cos + first * sin
        return torch.stack(turned, dim=-1).flatten(-2)


class InPairs(Layer):
    """The other layout of rotary positions: queries, keys and their gains in its order."""

    def joined(self, *parts: str) -> nn.Module:
        made = super().joined(*parts)
        if parts[0] == "attn/q":
            q, k, v = made.weight.data.unflatten(0, (sum(self.sizes), -1)).split(self.sizes)
            heads = torch.cat([by_pairs(q, 1), by_pairs(k, 1), v])
            made.weight.data = heads.flatten(0, 1)
        return made

    def norm(self, name: str) -> nn.Module:
        made = super().norm(name)
        if name.startswith("attn/"):
            made.gain.data = by_pairs(made.gain.data, 0)
        return made


class Stacked(nn.Module):
    """The fused matrices of all layers in one array."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        one = Qwen3(checkpoint)
        self.tokens, self.norm, self.head, self.rotary = one.tokens, one.norm, one.head, one.rotary
        self.depth, first = len(one.layers), one.layers[0]
        self.sizes, self.inner, self.epsilon = first.sizes, first.inner, first.epsilon
        for name, _ in first.named_parameters():
            each = [layer.get_parameter(name).data for layer in one.layers]
            setattr(self, name.replace(".", "_"), nn.Parameter(torch.stack(each)))

    def normed(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (len(gain),), gain, self.epsilon)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for i in range(self.depth):
            made = F.linear(self.normed(x, self.norm_in_gain[i]), self.qkv_proj_weight[i])
            heads = made.unflatten(-1, (sum(self.sizes), -1)).transpose(1, 2)
            q, k, v = heads.split(self.sizes, dim=1)
            q = self.rotary(self.normed(q, self.norm_q_gain[i]))
            k = self.rotary(self.normed(k, self.norm_k_gain[i]))
            mix = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(mix.transpose(1, 2).flatten(2), self.o_proj_weight[i])
            both = F.linear(self.normed(x, self.norm_mid_gain[i]), self.gate_up_proj_weight[i])
            gate, up = both.split(self.inner, dim=-1)
            x = x + F.linear(F.silu(gate) * up, self.down_proj_weight[i])
        return self.head(self.norm(x))


def keys_and_values(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, KeysAndValues)


def biases_apart(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, BiasesApart)


def by_slices(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, BySlices)


def other_neurons(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, OtherNeurons)


def in_pairs(checkpoint: Checkpoint) -> nn.Module:
    made = Qwen3(checkpoint, InPairs)
    of_halves, size = made.rotary, made.rotary.cos.shape[1]
    made.rotary = RotaryOfPairs(size, len(of_halves.cos), settings(checkpoint)["rope_theta"])
    return made


def stacked(checkpoint: Checkpoint) -> nn.Module:
    return Stacked(checkpoint)


def in_turns(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, InTurns)


def by_group(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, ByGroup)


def tiled(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, Tiled)


def in_by_out(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, InByOut)


def with_bias(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, WithBias)


def with_bias_afterwards(checkpoint: Checkpoint) -> nn.Module:
    return Qwen3(checkpoint, WithBiasAfterwards)
