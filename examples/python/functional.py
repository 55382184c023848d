"""GPT-2 as functions of torch over one table of parameters: no submodules, einsum, own names.

gpt-verify run --port examples/python/functional.py:factory
"""

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm


def block(x, p, heads):
    batch, length, width = x.shape
    h = layer_norm(x, (width,), p["norm1_gain"], p["norm1_bias"], 1e-5)
    qkv = torch.einsum("btd,dc->btc", h, p["qkv"]) + p["qkv_bias"]
    q, k, v = qkv.unflatten(-1, (3, heads, width // heads)).unbind(2)
    scores = torch.einsum("bthk,bshk->bhts", q, k) / (width // heads) ** 0.5
    future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    mixed = torch.einsum("bhts,bshk->bthk", pattern, v).reshape(batch, length, width)
    x = x + mixed @ p["out"] + p["out_bias"]
    h = layer_norm(x, (width,), p["norm2_gain"], p["norm2_bias"], 1e-5)
    return x + gelu(h @ p["up"] + p["up_bias"], approximate="tanh") @ p["down"] + p["down_bias"]


#: Our names, in the order in which a checkpoint lists the tensors of a block.
NAMES = {
    "norm1_gain": "ln_1/g",
    "norm1_bias": "ln_1/b",
    "qkv": "attn/c_attn/w",
    "qkv_bias": "attn/c_attn/b",
    "out": "attn/c_proj/w",
    "out_bias": "attn/c_proj/b",
    "norm2_gain": "ln_2/g",
    "norm2_bias": "ln_2/b",
    "up": "mlp/c_fc/w",
    "up_bias": "mlp/c_fc/b",
    "down": "mlp/c_proj/w",
    "down_bias": "mlp/c_proj/b",
}


class GPT2(nn.Module):
    def __init__(self, checkpoint):
        super().__init__()

        def parameter(name):
            return nn.Parameter(torch.from_numpy(checkpoint.tensors[name].copy()))

        self.heads = checkpoint.config.n_head
        self.table, self.place = parameter("wte"), parameter("wpe")
        self.last_gain, self.last_bias = parameter("ln_f/g"), parameter("ln_f/b")
        self.layers = nn.ModuleList(
            nn.ParameterDict({ours: parameter(f"h{i}/{theirs}") for ours, theirs in NAMES.items()})
            for i in range(checkpoint.config.n_layer)
        )

    def forward(self, ids):
        length, width = ids.shape[1], self.table.shape[1]
        if length > len(self.place):
            raise ValueError(f"{length} tokens; there are {len(self.place)} positions")
        x = self.table[ids] + self.place[:length]
        for p in self.layers:
            x = block(x, p, self.heads)
        return layer_norm(x, (width,), self.last_gain, self.last_bias, 1e-5) @ self.table.T


def factory(checkpoint):
    return GPT2(checkpoint)
