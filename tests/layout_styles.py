"""Correct GPT-2s that keep their weights otherwise than the checkpoint: by head, by layer, padded.

As in ``torch_styles``, every factory takes a checkpoint and returns a module.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch_styles import FusedBlock, Model, SplitBlock, embedding, tensor

from gpt_verify.checkpoint import Checkpoint


class ByHeadBlock(FusedBlock):
    """One nn.Linear whose rows are query, key and value of head 0, then of head 1 …"""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        for parameter in (self.qkv.weight, self.qkv.bias):
            parameter.data = self.by_head(parameter.data)

    def by_head(self, value: torch.Tensor) -> torch.Tensor:
        apart = value.unflatten(0, (3, self.heads, -1))
        return apart.transpose(0, 1).flatten(0, 2).contiguous()

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((pattern @ v).transpose(1, 2).flatten(2))


def by_head(checkpoint: Checkpoint) -> nn.Module:
    return Model(checkpoint, ByHeadBlock)


class PutInOrderBlock(ByHeadBlock):
    """The same weights, put in the checkpoint's order before they are used."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (
            p.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            for p in (self.qkv.weight, self.qkv.bias)
        )
        q, k, v = (self.split(part) for part in F.linear(x, weight, bias).chunk(3, dim=-1))
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mix.transpose(1, 2).flatten(2))


def put_in_order(checkpoint: Checkpoint) -> nn.Module:
    return Model(checkpoint, PutInOrderBlock)


class ReadPlainlyBlock(ByHeadBlock):
    """A fault: weights by head, as a converter left them, read as if they were not."""

    attend = FusedBlock.attend


def read_plainly(checkpoint: Checkpoint) -> nn.Module:
    return Model(checkpoint, ReadPlainlyBlock)


class HeadAxesBlock(SplitBlock):
    """W_Q, W_K, W_V [head, in, size] and W_O [head, size, out], contracted with einsum."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        del self.query, self.key, self.value, self.out_proj
        heads = (self.heads, -1)
        weights = tensor(checkpoint, f"{scope}/attn/c_attn/w").chunk(3, dim=1)
        biases = tensor(checkpoint, f"{scope}/attn/c_attn/b").chunk(3)
        for letter, w, b in zip("QKV", weights, biases, strict=True):
            by_head = w.unflatten(1, heads).transpose(0, 1).contiguous()
            setattr(self, f"W_{letter}", nn.Parameter(by_head))
            setattr(self, f"b_{letter}", nn.Parameter(b.reshape(heads).clone()))
        out = tensor(checkpoint, f"{scope}/attn/c_proj/w").unflatten(0, heads)
        self.W_O = nn.Parameter(out.clone())
        self.b_O = nn.Parameter(tensor(checkpoint, f"{scope}/attn/c_proj/b"))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.einsum("btd,hdk->bthk", x, w) + b
            for w, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
        length = x.shape[1]
        pattern = scores.masked_fill(self.mask[:length, :length] == 0, -math.inf).softmax(-1)
        mix = torch.einsum("bhts,bshk->bthk", pattern, v)
        return torch.einsum("bthk,hkd->btd", mix, self.W_O) + self.b_O


def head_axes(checkpoint: Checkpoint) -> nn.Module:
    return Model(checkpoint, HeadAxesBlock)


class Stacked(nn.Module):
    """Each tensor of all layers as one parameter [n_layer, …], as code for scans keeps it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.config = config = checkpoint.config
        for name in ("wte", "wpe", "ln_f/g", "ln_f/b"):
            value = nn.Parameter(tensor(checkpoint, name))
            self.register_parameter(name.replace("/", "_"), value)
        self.layers = nn.ParameterDict()
        for leaf in sorted(n.partition("/")[2] for n in checkpoint.tensors if n.startswith("h0/")):
            layers = [tensor(checkpoint, f"h{i}/{leaf}") for i in range(config.n_layer)]
            self.layers[leaf.replace("/", "_")] = torch.stack(layers)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        shape = (batch, length, self.config.n_head, -1)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = F.embedding(ids, self.wte) + self.wpe[:length]
        for i in range(self.config.n_layer):
            p = {name: value[i] for name, value in self.layers.items()}
            y = F.layer_norm(x, x.shape[-1:], p["ln_1_g"], p["ln_1_b"], 1e-5)
            qkv = y @ p["attn_c_attn_w"] + p["attn_c_attn_b"]
            q, k, v = (part.view(shape).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
            scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, -math.inf)
            mix = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + (mix @ p["attn_c_proj_w"] + p["attn_c_proj_b"])
            y = F.layer_norm(x, x.shape[-1:], p["ln_2_g"], p["ln_2_b"], 1e-5)
            y = F.gelu(y @ p["mlp_c_fc_w"] + p["mlp_c_fc_b"], approximate="tanh")
            x = x + (y @ p["mlp_c_proj_w"] + p["mlp_c_proj_b"])
        return F.layer_norm(x, x.shape[-1:], self.ln_f_g, self.ln_f_b, 1e-5) @ self.wte.T


def stacked(checkpoint: Checkpoint) -> nn.Module:
    return Stacked(checkpoint)


class Padded(Model):
    """A vocabulary of a round number of rows, which the logits have as well; a named output."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, SplitBlock)
        rows = self.wte.weight.shape[0]
        padded = F.pad(tensor(checkpoint, "wte"), (0, 0, 0, -rows % 64))
        self.wte = embedding(checkpoint, "wte")
        self.wte.weight = nn.Parameter(padded)
        self.head = nn.Linear(*reversed(padded.shape), bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> Any:
        return {"logits": super().forward(ids)}


def padded(checkpoint: Checkpoint) -> nn.Module:
    return Padded(checkpoint)


class FoldedBlock(SplitBlock):
    """Layer norms without gain and bias: both are in the matrices, as inference engines do it."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        for reader in (self.query, self.key, self.value):
            fold(self.ln_1, reader)
        fold(self.ln_2, self.fc_in)
        width = checkpoint.config.n_embd
        self.ln_1 = self.ln_2 = nn.LayerNorm(width, elementwise_affine=False)


def fold(norm: nn.LayerNorm, reader: nn.Linear) -> None:
    """(g x + b) W + c as x (g W) + (b W + c), in float32."""
    weight, bias = reader.weight.detach(), reader.bias
    shift = weight @ norm.bias.detach()
    reader.bias = nn.Parameter(shift if bias is None else bias.detach() + shift)
    reader.weight = nn.Parameter(weight * norm.weight.detach())


class Folded(Model):
    """The last norm is in the head, which has a bias of its own by that."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, FoldedBlock)
        self.head = nn.Linear(*reversed(self.wte.weight.shape))
        self.head.weight, self.head.bias = nn.Parameter(tensor(checkpoint, "wte")), None
        fold(self.final_norm, self.head)
        self.final_norm = nn.LayerNorm(checkpoint.config.n_embd, elementwise_affine=False)


def folded(checkpoint: Checkpoint) -> nn.Module:
    return Folded(checkpoint)
