"""A Gemma 2 written after its paper (Gemma Team 2024, sections 2 and 3) with the formulas in full.

Nothing of torch's that has a formula of its own is called: norms, rotary positions, soft caps, the
tanh form of GELU and the softmax are written out, and the heads that share keys have an axis.
"""

from __future__ import annotations

import math

import torch
from llama_port import settings, tensor
from torch import Tensor, nn

from gpt_verify.checkpoint import Checkpoint


def capped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


def bent(x: Tensor) -> Tensor:
    cubic = x + 0.044715 * x * x * x
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))


class Level(nn.Module):
    """x / rms(x), times one plus a gain, in float32 whatever it is given."""

    def __init__(self, offset: Tensor, tiny: float) -> None:
        super().__init__()
        self.offset, self.tiny = nn.Parameter(offset), tiny

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        power = (wide * wide).sum(-1, keepdim=True) / wide.shape[-1]
        return (wide / torch.sqrt(power + self.tiny) * (1 + self.offset.float())).to(x.dtype)


class Turn(nn.Module):
    """Rotary positions: the halves of a head are the two axes of a plane."""

    def __init__(self, size: int, theta: float) -> None:
        super().__init__()
        self.size, self.theta = size, theta

    def forward(self, x: Tensor) -> Tensor:
        half = self.size // 2
        at = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
        each = torch.arange(half, dtype=torch.float32, device=x.device)
        angle = at[:, None] * self.theta ** (-2 * each / self.size)
        shape = (x.shape[1], *(1,) * (x.ndim - 3), half)
        cos, sin = angle.cos().view(shape).to(x.dtype), angle.sin().view(shape).to(x.dtype)
        east, north = x[..., :half], x[..., half:]
        return torch.cat([east * cos - north * sin, north * cos + east * sin], dim=-1)


class Look(nn.Module):
    """Attention of G groups of R heads; ``reach`` is how far back it sees."""

    def __init__(self, source: Checkpoint, layer: int) -> None:
        super().__init__()
        said = settings(source)
        self.groups, self.size = said["num_key_value_heads"], said["head_dim"]
        self.strength = said["query_pre_attn_scalar"] ** -0.5
        self.cap = said["attn_logit_softcapping"]
        self.reach = said["sliding_window"] if layer % 2 == 0 else None
        self.turn = Turn(self.size, said["rope_theta"])
        for name, part in (("ask", "q"), ("offer", "k"), ("tell", "v"), ("merge", "o")):
            setattr(self, name, nn.Parameter(tensor(source, f"h{layer}/attn/{part}/w")))

    def forward(self, x: Tensor) -> Tensor:
        asked = self.turn((x @ self.ask).unflatten(-1, (self.groups, -1, self.size)))
        offered = self.turn((x @ self.offer).unflatten(-1, (self.groups, self.size)))
        told = (x @ self.tell).unflatten(-1, (self.groups, self.size))
        match = torch.einsum("btgrk,bsgk->bgrts", asked, offered) * self.strength
        weight = self.shares(capped(match, self.cap)).to(x.dtype)
        return torch.einsum("bgrts,bsgk->btgrk", weight, told).flatten(2) @ self.merge

    def shares(self, match: Tensor) -> Tensor:
        at = torch.arange(match.shape[-1], device=match.device)
        behind = at[:, None] - at
        hidden = behind < 0
        if self.reach is not None:
            hidden = hidden | (behind >= self.reach)
        return match.float().masked_fill(hidden, -math.inf).softmax(-1)


class Think(nn.Module):
    def __init__(self, source: Checkpoint, layer: int) -> None:
        super().__init__()
        for name, part in (("open", "gate"), ("carry", "up"), ("back", "down")):
            setattr(self, name, nn.Parameter(tensor(source, f"h{layer}/mlp/{part}/w")))

    def forward(self, x: Tensor) -> Tensor:
        return (bent(x @ self.open) * (x @ self.carry)) @ self.back


class Storey(nn.Module):
    def __init__(self, source: Checkpoint, layer: int) -> None:
        super().__init__()
        tiny = settings(source).get("rms_norm_eps", 1e-6)
        self.look, self.think = Look(source, layer), Think(source, layer)
        for name, norm in (("a", "ln_1"), ("b", "ln_1_after"), ("c", "ln_2"), ("d", "ln_2_after")):
            setattr(self, name, Level(tensor(source, f"h{layer}/{norm}/g"), tiny))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(self.look(self.a(x)))
        return x + self.d(self.think(self.c(x)))


class Gemma2(nn.Module):
    def __init__(self, source: Checkpoint) -> None:
        super().__init__()
        said = settings(source)
        self.words = nn.Parameter(tensor(source, "wte"))
        storeys = range(said["num_hidden_layers"])
        self.storeys = nn.ModuleList(Storey(source, layer) for layer in storeys)
        self.last = Level(tensor(source, "ln_f/g"), said.get("rms_norm_eps", 1e-6))
        self.cap = said["final_logit_softcapping"]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words[tokens] * math.sqrt(self.words.shape[1])
        for storey in self.storeys:
            x = storey(x)
        return capped(self.last(x) @ self.words.T, self.cap)


def gemma2(checkpoint: Checkpoint) -> nn.Module:
    return Gemma2(checkpoint)
