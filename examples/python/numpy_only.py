"""GPT-2 in NumPy, float32: a function from tokens to logits, and so a port.

gpt-verify run --port examples/python/numpy_only.py:factory
"""

import numpy as np


def factory(checkpoint):
    heads, layers = checkpoint.config.n_head, checkpoint.config.n_layer
    w = {name: np.array(tensor) for name, tensor in checkpoint.tensors.items()}

    def norm(x, scope):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(1e-5)) * w[f"{scope}/g"] + w[f"{scope}/b"]

    def linear(x, scope):
        return x @ w[f"{scope}/w"] + w[f"{scope}/b"]

    def gelu(x):
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(0.5) * x * (1 + np.tanh(inner))

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def attention(x, scope):
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, heads, -1).swapaxes(1, 2)
            for part in np.split(linear(x, f"{scope}/c_attn"), 3, axis=-1)
        )
        scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(width / heads))
        scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        mixed = (softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
        return linear(mixed, f"{scope}/c_proj")

    def logits(tokens):
        length = tokens.shape[1]
        if length > len(w["wpe"]):
            raise ValueError(f"{length} tokens; there are {len(w['wpe'])} positions")
        x = w["wte"][tokens] + w["wpe"][:length]
        for i in range(layers):
            x = x + attention(norm(x, f"h{i}/ln_1"), f"h{i}/attn")
            x = x + linear(
                gelu(linear(norm(x, f"h{i}/ln_2"), f"h{i}/mlp/c_fc")), f"h{i}/mlp/c_proj"
            )
        return norm(x, "ln_f") @ w["wte"].T

    return logits
