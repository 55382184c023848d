"""Correct GPT-2s whose matrices lie in pieces, or in another order: more of ``layout_styles``.

Each has the attention of ``Apart``; they differ in which parameters make q, k and v of it, and in
which projection reads what it makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch_styles import Model, SplitBlock, set_linear, tensor

from gpt_verify.checkpoint import Checkpoint

Pair = tuple[torch.Tensor, torch.Tensor]


class Apart(SplitBlock):
    """What all of them compute. A subclass keeps ``c_attn`` in its own way and reads it so."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        del self.query, self.key, self.value
        weight, bias = (tensor(checkpoint, f"{scope}/attn/c_attn/{x}") for x in "wb")
        self.keep(list(zip(weight.chunk(3, 1), bias.chunk(3), strict=True)))

    def keep(self, parts: Sequence[Pair]) -> None:
        raise NotImplementedError

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        raise NotImplementedError

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(part) for part in self.qkv(x))
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(mix.transpose(1, 2).flatten(2))

    def project(self, mix: torch.Tensor) -> torch.Tensor:
        return self.out_proj(mix)

    def heads_of(self, pair: Pair) -> list[Pair]:
        weight, bias = pair
        return list(zip(weight.chunk(self.heads, 1), bias.chunk(self.heads), strict=True))


def joined(*pairs: Pair) -> nn.Linear:
    weight, bias = torch.cat([w for w, _ in pairs], 1), torch.cat([b for _, b in pairs])
    return set_linear(nn.Linear(*weight.shape), weight, bias)


class FusedKeyValue(Apart):
    """q by itself, k and v in one matrix."""

    def keep(self, parts: Sequence[Pair]) -> None:
        self.to_q, self.to_kv = joined(parts[0]), joined(*parts[1:])

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return [self.to_q(x), *self.to_kv(x).chunk(2, -1)]


class Backwards(Apart):
    """One matrix, v before k before q."""

    def keep(self, parts: Sequence[Pair]) -> None:
        self.fused = joined(*reversed(parts))

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.fused(x).chunk(3, -1)[::-1]


class ListOfHeads(Apart):
    """Each head has a layer for each of q, k and v."""

    def keep(self, parts: Sequence[Pair]) -> None:
        by_head = zip(*(self.heads_of(part) for part in parts), strict=True)
        self.each = nn.ModuleList(nn.ModuleList(map(joined, of)) for of in by_head)

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.cat([head[i](x) for head in self.each], -1) for i in range(3)]


class FusedHeads(Apart):
    """Each head has one matrix of its own, and a projection whose outputs are summed."""

    def keep(self, parts: Sequence[Pair]) -> None:
        by_head = zip(*(self.heads_of(part) for part in parts), strict=True)
        self.each = nn.ModuleList(joined(*of) for of in by_head)
        rows = self.out_proj.weight.detach().chunk(self.heads, 1)
        self.out_bias = self.out_proj.bias
        self.outs = nn.ParameterList(nn.Parameter(part.clone()) for part in rows)
        del self.out_proj

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        made = [head(x).chunk(3, -1) for head in self.each]
        return [torch.cat([head[i] for head in made], -1) for i in range(3)]

    def project(self, mix: torch.Tensor) -> torch.Tensor:
        parts = zip(mix.chunk(self.heads, -1), self.outs, strict=True)
        return sum(F.linear(part, weight) for part, weight in parts) + self.out_bias


class Interleaved(Apart):
    """One matrix, whose columns go round q, k and v, and within each of these round the heads."""

    def keep(self, parts: Sequence[Pair]) -> None:
        weight, bias = torch.cat([w for w, _ in parts], 1), torch.cat([b for _, b in parts])
        by_size = [p.unflatten(-1, (3, self.heads, -1)).transpose(-1, -3) for p in (weight, bias)]
        self.fused = joined((by_size[0].flatten(1), by_size[1].flatten()))

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        apart = self.fused(x).unflatten(-1, (-1, self.heads, 3)).transpose(-1, -3)
        return list(apart.flatten(-2).unbind(-2))


class PutTogether(Backwards):
    """The same, put in the checkpoint's order before it is used."""

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        weight, bias = (p.unflatten(0, (3, -1)).flip(0) for p in self.fused.parameters())
        return F.linear(x, weight.flatten(0, 1), bias.flatten()).chunk(3, -1)


class OtherHeads(Apart):
    """The heads in another order, which is as good as any, with their rows in the projection."""

    def keep(self, parts: Sequence[Pair]) -> None:
        self.fused = joined(*(pair for part in parts for pair in self.heads_of(part)[::-1]))
        rows = self.out_proj.weight.detach().unflatten(1, (self.heads, -1)).flip(1)
        self.out_proj.weight = nn.Parameter(rows.flatten(1).clone())

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.fused(x).chunk(3, -1)


class OtherNeurons(Apart):
    """The neurons in another order, and three matrices with one bias."""

    def keep(self, parts: Sequence[Pair]) -> None:
        self.w = nn.ParameterList(nn.Parameter(weight.clone()) for weight, _ in parts)
        self.b = nn.Parameter(torch.cat([bias for _, bias in parts]))
        order = torch.randperm(len(self.fc_in.bias), generator=torch.Generator().manual_seed(0))
        self.fc_in.weight = nn.Parameter(self.fc_in.weight.detach()[order])
        self.fc_in.bias = nn.Parameter(self.fc_in.bias.detach()[order])
        self.fc_out.weight = nn.Parameter(self.fc_out.weight.detach()[:, order].clone())

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        biases = self.b.chunk(3)
        return [x @ weight + bias for weight, bias in zip(self.w, biases, strict=True)]


class Shards(Apart):
    """Half of the heads and half of the neurons in each of two parameters."""

    def keep(self, parts: Sequence[Pair]) -> None:
        half = [[self.heads_of(part)[i::2] for part in parts] for i in range(2)]
        self.counts = [len(of[0]) for of in half]
        self.shards = nn.ModuleList(joined(*(p for part in of for p in part)) for of in half)

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        made = [
            list(shard(x).unflatten(-1, (3, n, -1)).unbind(-3))
            for shard, n in zip(self.shards, self.counts, strict=True)
        ]
        whole = []
        for one, other in zip(*made, strict=True):
            heads = torch.empty((*x.shape[:-1], self.heads, one.shape[-1]), dtype=x.dtype)
            heads[..., ::2, :], heads[..., 1::2, :] = one, other
            whole.append(heads.flatten(-2))
        return whole


class WholeHeads(ListOfHeads):
    """Each head does all of its attention by itself."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        future, mixes = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), []
        for query, key, value in self.each:
            q, k, v = query(x), key(x), value(x)
            scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)
            mixes.append(scores.softmax(-1) @ v)
        return self.out_proj(torch.cat(mixes, -1))


class StackedHeads(Apart):
    """[head, in, q/k/v of that head], contracted with einsum."""

    def keep(self, parts: Sequence[Pair]) -> None:
        heads = [self.heads_of(part) for part in parts]
        by_head = list(zip(*heads, strict=True))
        self.w = nn.Parameter(torch.stack([torch.cat([w for w, _ in of], 1) for of in by_head]))
        self.b = nn.Parameter(torch.stack([torch.cat([b for _, b in of]) for of in by_head]))

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        made = torch.einsum("btd,hdk->bthk", x, self.w) + self.b
        return [part.flatten(2) for part in made.chunk(3, -1)]


class JoinedNorms(FusedKeyValue):
    """Gains and biases of both layer norms in one matrix."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        rows = [self.ln_1.weight, self.ln_1.bias, self.ln_2.weight, self.ln_2.bias]
        self.norms = nn.Parameter(torch.stack([row.detach() for row in rows]))
        del self.ln_1, self.ln_2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain_1, bias_1, gain_2, bias_2 = self.norms
        x = x + self.attend(F.layer_norm(x, x.shape[-1:], gain_1, bias_1))
        return x + self.mlp(F.layer_norm(x, x.shape[-1:], gain_2, bias_2))


class OneKeyValue(nn.Module):
    """k and v of all layers in one matrix, which has more rows than the vocabulary."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.base = Model(checkpoint, SplitBlock)
        blocks = self.base.blocks
        rows = [layer.weight.detach() for block in blocks for layer in (block.key, block.value)]
        self.kv = nn.Parameter(torch.cat(rows))
        for block in blocks:
            both = torch.cat([block.key.bias.detach(), block.value.bias.detach()])
            block.kv_bias = nn.Parameter(both)
            del block.key, block.value

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.base.wte(ids) + self.base.wpe(torch.arange(ids.shape[1]))
        weights = self.kv.chunk(len(self.base.blocks))
        for block, weight in zip(self.base.blocks, weights, strict=True):
            y = block.ln_1(x)
            parts = (block.query(y), *F.linear(y, weight, block.kv_bias).chunk(2, -1))
            q, k, v = (block.split(part) for part in parts)
            mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block.out_proj(mix.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
        return self.base.head(self.base.final_norm(x))


#: By name, what is read in the order in which it lies.
STYLES: dict[str, type[Apart]] = {
    "fused_key_value": FusedKeyValue,
    "backwards": Backwards,
    "list_of_heads": ListOfHeads,
    "fused_heads": FusedHeads,
    "interleaved": Interleaved,
    "put_together": PutTogether,
    "other_heads": OtherHeads,
    "other_neurons": OtherNeurons,
    "shards": Shards,
    "whole_heads": WholeHeads,
    "stacked_heads": StackedHeads,
    "joined_norms": JoinedNorms,
}


def styled(checkpoint: Checkpoint, style: str) -> nn.Module:
    made: nn.Module = Model(checkpoint, STYLES[style])
    return made
