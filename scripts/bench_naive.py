"""What people write by hand: load both sides in one process and compare the logits.

    python scripts/bench_naive.py OPENAI_DIR HUGGINGFACE_DIR LENGTH

No site, no weight, no float64, no tolerance. It is what ``scripts/bench.py`` measures a full
verification against; TensorFlow and torch share a process here, as they do in such scripts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import torch
import transformers

openai, huggingface, length = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sizes = json.loads((openai / "hparams.json").read_text())
tokens = np.random.default_rng(0).integers(0, sizes["n_vocab"], (1, length))

reader = tf.train.load_checkpoint(str(openai))
weights = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def norm(x: tf.Tensor, scope: str) -> tf.Tensor:
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axis=-1, keepdims=True)
    scaled = (x - mean) * tf.math.rsqrt(variance + 1e-5)
    return scaled * weights[f"{scope}/g"] + weights[f"{scope}/b"]


def dense(x: tf.Tensor, scope: str) -> tf.Tensor:
    return tf.matmul(x, weights[f"{scope}/w"][0]) + weights[f"{scope}/b"]


def attention(x: tf.Tensor, scope: str) -> tf.Tensor:
    heads = sizes["n_head"]
    q, k, v = (
        tf.transpose(tf.reshape(part, (length, heads, -1)), (1, 0, 2))
        for part in tf.split(dense(x, f"{scope}/c_attn"), 3, axis=-1)
    )
    scores = tf.matmul(q, k, transpose_b=True) / np.sqrt(sizes["n_embd"] // heads)
    below = tf.linalg.band_part(tf.ones((length, length)), -1, 0)
    mixed = tf.matmul(tf.nn.softmax(scores * below - 1e10 * (1 - below)), v)
    joined = tf.reshape(tf.transpose(mixed, (1, 0, 2)), (length, sizes["n_embd"]))
    return dense(joined, f"{scope}/c_proj")


x = tf.gather(weights["model/wte"], tokens[0]) + weights["model/wpe"][:length]
for layer in range(sizes["n_layer"]):
    block = f"model/h{layer}"
    x = x + attention(norm(x, f"{block}/ln_1"), f"{block}/attn")
    hidden = tf.nn.gelu(dense(norm(x, f"{block}/ln_2"), f"{block}/mlp/c_fc"), approximate=True)
    x = x + dense(hidden, f"{block}/mlp/c_proj")
ours = tf.matmul(norm(x, "model/ln_f"), weights["model/wte"], transpose_b=True).numpy()

model = transformers.GPT2LMHeadModel.from_pretrained(huggingface)
with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits[0].numpy()
print("largest difference of the logits:", np.abs(ours - theirs).max())
