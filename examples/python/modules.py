"""GPT-2 as small torch modules, in the style of nanoGPT. No mapping of names is needed.

gpt-verify run --port examples/python/modules.py:factory
"""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.to_qkv(x).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.to_out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT2(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.n_vocab, config.n_embd)
        self.positions = nn.Embedding(config.n_ctx, config.n_embd)
        self.blocks = nn.ModuleList(
            Block(config.n_embd, config.n_head) for _ in range(config.n_layer)
        )
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.n_vocab, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def factory(checkpoint):
    """Copy the checkpoint's tensors to where they belong; matrices there are [in, out]."""
    model, tensors = GPT2(checkpoint.config), checkpoint.tensors

    def fill(module, scope):
        for name, stored in (
            ("weight", "g" if isinstance(module, nn.LayerNorm) else "w"),
            ("bias", "b"),
        ):
            value = torch.from_numpy(tensors[f"{scope}/{stored}"].copy())
            getattr(module, name).data = value.T.contiguous() if value.ndim == 2 else value

    model.tokens.weight.data = torch.from_numpy(tensors["wte"].copy())
    model.head.weight = model.tokens.weight
    model.positions.weight.data = torch.from_numpy(tensors["wpe"].copy())
    for i, block in enumerate(model.blocks):
        fill(block.norm_1, f"h{i}/ln_1")
        fill(block.attention.to_qkv, f"h{i}/attn/c_attn")
        fill(block.attention.to_out, f"h{i}/attn/c_proj")
        fill(block.norm_2, f"h{i}/ln_2")
        fill(block.mlp[0], f"h{i}/mlp/c_fc")
        fill(block.mlp[2], f"h{i}/mlp/c_proj")
    fill(model.norm, "ln_f")
    return model
