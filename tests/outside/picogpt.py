"""GPT-2 as a page of NumPy, in the style of picoGPT: it shows nothing but logits.

It is right as it stands. A fault replaces one of its functions, all of which are looked up in the
dictionary that they are handed.
"""

from __future__ import annotations

import math

import numpy as np


def gelu(x, f):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x, f):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, g, b, f):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return g * (x - mean) / np.sqrt(variance + np.float32(1e-5)) + b


def linear(x, w, b, f):
    return x @ w + b


def embed(tokens, w, f):
    """tokens int[T] → [T, D]."""
    return w["wte"][tokens] + w["wpe"][: len(tokens)]


def mask(length, f):
    return np.triu(np.full((length, length), -np.inf, np.float32), 1)


def attend(q, k, v, f):
    """One head."""
    scores = q @ k.T / np.float32(math.sqrt(q.shape[-1])) + f["mask"](len(q), f)
    return f["softmax"](scores, f) @ v


def attention(x, w, scope, heads, f):
    qkv = f["linear"](x, w[f"{scope}/c_attn/w"], w[f"{scope}/c_attn/b"], f)
    parts = [np.split(part, heads, axis=-1) for part in np.split(qkv, 3, axis=-1)]
    mixed = np.hstack([f["attend"](q, k, v, f) for q, k, v in zip(*parts, strict=True)])
    return f["linear"](mixed, w[f"{scope}/c_proj/w"], w[f"{scope}/c_proj/b"], f)


def mlp(x, w, scope, f):
    pre = f["linear"](x, w[f"{scope}/c_fc/w"], w[f"{scope}/c_fc/b"], f)
    return f["linear"](f["gelu"](pre, f), w[f"{scope}/c_proj/w"], w[f"{scope}/c_proj/b"], f)


def block(x, w, layer, heads, f):
    h = f"h{layer}"
    normed = f["norm"](x, w[f"{h}/ln_1/g"], w[f"{h}/ln_1/b"], f)
    x = x + f["attention"](normed, w, f"{h}/attn", heads, f)
    normed = f["norm"](x, w[f"{h}/ln_2/g"], w[f"{h}/ln_2/b"], f)
    return x + f["mlp"](normed, w, f"{h}/mlp", f)


def model(tokens, w, config, f):
    """tokens int[T] → logits [T, V]."""
    x = f["embed"](tokens, w, f)
    for layer in range(config.n_layer):
        x = f["block"](x, w, layer, config.n_head, f)
    return f["norm"](x, w["ln_f/g"], w["ln_f/b"], f) @ w["wte"].T


def batched(tokens, w, config, f):
    return np.stack([f["model"](row, w, config, f) for row in tokens])


FUNCTIONS = {
    "gelu": gelu,
    "softmax": softmax,
    "norm": norm,
    "linear": linear,
    "embed": embed,
    "mask": mask,
    "attend": attend,
    "attention": attention,
    "mlp": mlp,
    "block": block,
    "model": model,
    "batched": batched,
}


def port(checkpoint, replaced=None, tensors=None):
    """tokens int[B, T] → logits [B, T, V], with one function replaced, or with other weights."""
    f = FUNCTIONS | (replaced or {})
    w, config = dict(checkpoint.tensors if tensors is None else tensors), checkpoint.config

    def logits(tokens):
        tokens = np.asarray(tokens)
        if tokens.shape[1] > config.n_ctx:
            raise ValueError(f"{tokens.shape[1]} tokens; {config.n_ctx} fit")
        return f["batched"](tokens, w, config, f)

    return logits


def right(checkpoint):
    """Nothing is wrong with it."""
    return port(checkpoint)
