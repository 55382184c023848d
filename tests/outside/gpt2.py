"""A GPT-2 in torch with all that its users ask of one: masks, a cache, a loss, generation.

It is right as it stands. Each step that somebody could get wrong is a method of a small part, and a
fault is a subclass of one part that is put into its place.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed


class Norm(nn.Module):
    def __init__(self, width, scope=""):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.scope = scope

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.heads, self.layer = config.n_head, layer
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.drop_pattern, self.drop_out = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x, allowed, past=None):
        q, k, v = self.split(self.c_attn(x))
        if past is not None:
            k, v = self.joined(past[0], k), self.joined(past[1], v)
        pattern = self.pattern(self.scores(q, k), allowed)
        mix = self.merge(self.drop_pattern(pattern) @ v)
        return self.drop_out(self.c_proj(mix)), self.kept(k, v)

    def split(self, qkv):
        return [self.by_head(part) for part in qkv.chunk(3, dim=-1)]

    def by_head(self, part):
        return part.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, mix):
        return mix.transpose(1, 2).flatten(2)

    def scores(self, q, k):
        return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])

    def pattern(self, scores, allowed):
        return scores.masked_fill(~allowed, -math.inf).softmax(-1)

    def joined(self, old, new):
        return torch.cat([old, new], dim=2)

    def kept(self, k, v):
        return k, v


class MLP(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.drop = nn.Dropout(0.1)

    def act(self, x):
        return F.gelu(x, approximate="tanh")

    def forward(self, x):
        return self.drop(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config, layer, of):
        super().__init__()
        self.layer = layer
        self.ln_1, self.ln_2 = of(Norm)(config.n_embd, "ln_1"), of(Norm)(config.n_embd, "ln_2")
        self.attn, self.mlp = of(Attention)(config, layer), of(MLP)(config, layer)

    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), kept


class GPT2(nn.Module):
    """With the arguments that transformers' model takes."""

    def __init__(self, config, replaced=None):
        super().__init__()

        def of(part):
            return replaced if replaced is not None and issubclass(replaced, part) else part

        self.config = config
        self.wte = nn.Embedding(config.n_vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList(of(Block)(config, layer, of) for layer in range(config.n_layer))
        self.ln_f = of(Norm)(config.n_embd, "ln_f")
        self.lm_head = nn.Linear(config.n_embd, config.n_vocab, bias=False)
        self.gradient_checkpointing = False
        self.tie_weights()

    def tie_weights(self):
        self.lm_head.weight = self.wte.weight

    def gradient_checkpointing_enable(self):
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self):
        self.gradient_checkpointing = False

    def get_input_embeddings(self):
        return self.wte

    def get_output_embeddings(self):
        return self.lm_head

    def resize_token_embeddings(self, count):
        """Old rows are kept, new ones are drawn, and the head stays tied."""
        old = self.wte.weight
        self.wte = nn.Embedding(count, old.shape[1], dtype=old.dtype, device=old.device)
        rows = min(count, len(old))
        with torch.no_grad():
            self.wte.weight.normal_(std=0.02)
            self.wte.weight[:rows] = old[:rows]
        self.lm_head = nn.Linear(old.shape[1], count, bias=False)
        self.tie_weights()
        return self.wte

    def positions(self, ids, mask, start):
        """int[B or 1, T]: how many real tokens stand before each."""
        if mask is None:
            return torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]

    def allowed(self, ids, mask, start):
        """bool[B or 1, 1, T, S]: what each token sees; padding sees itself, so no row is empty."""
        length, seen = ids.shape[1], start + ids.shape[1]
        causal = torch.ones(length, seen, dtype=torch.bool, device=ids.device).tril(start)
        if mask is None:
            return causal[None, None]
        itself = torch.eye(seen, dtype=torch.bool, device=ids.device)[start:]
        return (causal & self.visible(mask) | itself)[:, None]

    def visible(self, mask):
        """bool[B, 1, S]: which tokens may be seen at all."""
        return mask.bool()[:, None, :]

    def embed(self, ids, positions):
        return self.drop(self.wte(ids) + self.wpe(positions))

    def blocks(self, x, allowed, past):
        kept = []
        for layer, block in enumerate(self.h):
            before = None if past is None else past[layer]
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x, new = recomputed(block, x, allowed, before, use_reentrant=False)
            else:
                x, new = block(x, allowed, before)
            kept.append(new)
        return x, kept

    def head(self, x):
        return self.lm_head(self.ln_f(x))

    def seen(self, past):
        return 0 if past is None else past[0][0].shape[2]

    def run(self, ids, mask=None, positions=None, past=None):
        start = self.seen(past)
        if start + ids.shape[1] > self.config.n_ctx:
            raise ValueError(f"{start + ids.shape[1]} tokens; {self.config.n_ctx} fit")
        if positions is None:
            positions = self.positions(ids, mask, start)
        x, kept = self.blocks(self.embed(ids, positions), self.allowed(ids, mask, start), past)
        return self.head(x), kept

    def loss(self, logits, labels):
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=False,
        labels=None,
    ):
        logits, kept = self.run(input_ids, attention_mask, position_ids, past_key_values)
        found = {"logits": logits}
        if use_cache:
            found["past_key_values"] = kept
        if labels is not None:
            found["loss"] = self.loss(logits, labels)
        return found

    def following(self, logits):
        """The next token of each row."""
        return logits[:, -1].argmax(-1, keepdim=True)

    @torch.no_grad()
    def generate(self, input_ids, attention_mask=None, max_new_tokens=8, do_sample=False):
        """Greedy decoding with a cache; rows are padded on the left."""
        ids, new, past = input_ids, input_ids, None
        for _ in range(max_new_tokens):
            found = self(new, attention_mask, past_key_values=past, use_cache=True)
            past, new = found["past_key_values"], self.following(found["logits"])
            ids = torch.cat([ids, new], dim=1)
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1), value=1)
        return ids


def filled(model, tensors):
    """The model with the checkpoint's weights; matrices there are [in, out]."""

    def fill(parameter, name):
        value = torch.from_numpy(tensors[name].copy())
        matrix = name.endswith("/w")
        parameter.copy_(value.T if matrix else value)

    def normed(norm, scope):
        fill(norm.weight, f"{scope}/g")
        fill(norm.bias, f"{scope}/b")

    def linear(module, scope):
        fill(module.weight, f"{scope}/w")
        fill(module.bias, f"{scope}/b")

    with torch.no_grad():
        fill(model.wte.weight, "wte")
        fill(model.wpe.weight, "wpe")
        for layer, block in enumerate(model.h):
            normed(block.ln_1, f"h{layer}/ln_1")
            linear(block.attn.c_attn, f"h{layer}/attn/c_attn")
            linear(block.attn.c_proj, f"h{layer}/attn/c_proj")
            normed(block.ln_2, f"h{layer}/ln_2")
            linear(block.mlp.c_fc, f"h{layer}/mlp/c_fc")
            linear(block.mlp.c_proj, f"h{layer}/mlp/c_proj")
        normed(model.ln_f, "ln_f")
    return model


def right(checkpoint):
    """Nothing is wrong with it."""
    return filled(GPT2(checkpoint.config), checkpoint.tensors).eval()
