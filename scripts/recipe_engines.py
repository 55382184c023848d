"""Engines in half precision that show their sites: ports for the tables of docs/recipes.md, beside
the built-in ones.

    gpt-verify recipe --port scripts/recipe_engines.py:inductor --dtype bfloat16
    gpt-verify recipe --port scripts/recipe_engines.py:keras --dtype bfloat16
    gpt-verify recipe --port scripts/recipe_engines.py:onnxruntime

An engine that is looked into is not always the engine that is not: a compiler that must hand out a
number stores it. What is said here is what each operation does with the numbers that were stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.port import Dtype, Port
from gpt_verify.ports.engine import run_child
from gpt_verify.process.scratch import scratch


class Shows(Port):
    """A port whose engine is one function that yields every site with its value."""

    def activations(self, tokens: Any, visit: Any) -> Any:
        value = None
        for site, value in self.run(tokens):
            visit(site, value)
        return value

    def logits(self, tokens: Any) -> Any:
        return self.activations(tokens, lambda *_: None)

    def run(self, tokens: Any) -> Iterator[tuple[str, Any]]:
        raise NotImplementedError


class Inductor(Shows):
    """transformers' modules, with torch's fused attention, in one function that is compiled."""

    def __init__(self, checkpoint: Checkpoint, dtype: Dtype) -> None:
        import torch

        from gpt_verify.ports.huggingface import huggingface

        self._eager: Any = huggingface(checkpoint, "sdpa", dtype, "cpu")
        self.name, self.dtype = "torch.compile", dtype
        self._names: list[str] = []
        self._compiled = torch.compile(self._forward)

    def _forward(self, ids: Any) -> list[Any]:
        import torch

        model = self._eager.module.transformer
        names, made = [], []

        def show(site: str, value: Any) -> Any:
            names.append(site)
            made.append(value)
            return value

        x = show("embed", model.wte(ids) + model.wpe(torch.arange(ids.shape[1])))
        for i, block in enumerate(model.h):
            at = f"h.{i}."
            read = show(f"{at}ln_1", block.ln_1(x))
            qkv = show(f"{at}attn.qkv", block.attn.c_attn(read))
            heads = [p.unflatten(-1, (block.attn.num_heads, -1)) for p in qkv.chunk(3, -1)]
            q, k, v = (part.transpose(1, 2) for part in heads)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            mixed = show(f"{at}attn.mix", mixed.transpose(1, 2).flatten(2))
            out = show(f"{at}attn.out", block.attn.c_proj(mixed))
            x = show(f"{at}resid_mid", out + x)
            pre = show(f"{at}mlp.pre", block.mlp.c_fc(show(f"{at}ln_2", block.ln_2(x))))
            act = show(f"{at}mlp.act", block.mlp.act(pre))
            x = show(f"{at}resid_post", x + show(f"{at}mlp.out", block.mlp.c_proj(act)))
        x = show("ln_f", model.ln_f(x))
        show("logits", self._eager.module.lm_head(x))
        self._names = names
        return made

    def run(self, tokens: Any) -> Iterator[tuple[str, Any]]:
        import torch

        with torch.no_grad():
            made = self._compiled(torch.from_numpy(np.array(tokens)))
        for name, value in zip(self._names, made, strict=True):
            yield name, value.float().numpy()


class Keras(Shows):
    """The layers of KerasHub's GPT-2 on TensorFlow, called as ``TransformerDecoder.call`` does."""

    def __init__(self, checkpoint: Checkpoint, dtype: Dtype) -> None:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        import keras_hub

        self.name, self.dtype = "keras-hub", dtype
        with scratch() as directory:
            write_huggingface(Path(directory), checkpoint.config, checkpoint.tensors)
            self._model = keras_hub.models.GPT2Backbone.from_preset(directory, dtype=dtype)

    def run(self, tokens: Any) -> Iterator[tuple[str, Any]]:
        import keras

        model, ids = self._model, np.asarray(tokens, np.int32)

        def heads(value: Any) -> Any:
            return keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))

        def wide(value: Any) -> Any:
            return heads(value).reshape(*ids.shape, -1)

        x = model.token_embedding(ids)
        x = model.embeddings_add((x, model.position_embedding(x)))
        yield "embed", wide(x)
        for i, layer in enumerate(model.transformer_layers):
            at, attention = f"h.{i}.", layer._self_attention_layer
            mask = layer._compute_self_attention_mask(x, None, None, True, None, None)
            read = layer._self_attention_layer_norm(x)
            yield f"{at}ln_1", wide(read)
            parts = "query", "key", "value"
            of = {part: getattr(attention, f"_{part}_dense")(read) for part in parts}
            yield f"{at}attn.qkv", np.concatenate([wide(of[part]) for part in parts], -1)
            # ``MultiHeadAttention._compute_attention``, where there is dropout to be left out.
            query = keras.ops.multiply(of["query"], attention._inverse_sqrt_key_dim)
            scores = keras.ops.einsum(attention._dot_product_equation, of["key"], query)
            yield f"{at}attn.scores", heads(scores)
            pattern = attention._masked_softmax(scores, mask)
            yield f"{at}attn.pattern", heads(pattern)
            mixed = keras.ops.einsum(attention._combine_equation, pattern, of["value"])
            yield f"{at}attn.mix", wide(mixed)
            out = attention._output_dense(mixed)
            yield f"{at}attn.out", wide(out)
            x = out + x
            yield f"{at}resid_mid", wide(x)
            read = layer._feedforward_layer_norm(x)
            yield f"{at}ln_2", wide(read)
            first = layer._feedforward_intermediate_dense
            activation, first.activation = first.activation, keras.activations.linear
            pre = first(read)
            first.activation = activation
            yield f"{at}mlp.pre", wide(pre)
            act = activation(pre)
            yield f"{at}mlp.act", wide(act)
            out = layer._feedforward_output_dense(act)
            yield f"{at}mlp.out", wide(out)
            x = out + x
            yield f"{at}resid_post", wide(x)
        x = model.layer_norm(x)
        yield "ln_f", wide(x)
        yield "logits", wide(model.token_embedding(x, reverse=True))


def inductor(checkpoint: Checkpoint, dtype: Dtype | None = None) -> Port:
    return Inductor(checkpoint, dtype or "bfloat16")


def keras(checkpoint: Checkpoint, dtype: Dtype | None = None) -> Port:
    return Keras(checkpoint, dtype or "bfloat16")


def onnxruntime(checkpoint: Checkpoint, dtype: Dtype | None = None) -> Port:
    """The export of transformers' model in half precision."""
    import torch
    import transformers

    from gpt_verify.ports.onnx_file import OnnxPort

    half: Dtype = dtype or "float16"
    with scratch() as directory:
        first, second = Path(directory, "float32"), Path(directory, half)
        write_huggingface(first, checkpoint.config, checkpoint.tensors)
        made: Any = transformers.GPT2LMHeadModel.from_pretrained(first, dtype=getattr(torch, half))
        made.save_pretrained(second)
        file = Path(directory, "model.onnx")
        run_child("onnx", "gpt_verify.engines.onnx_export", os.fspath(second), os.fspath(file))
        port = OnnxPort(file, checkpoint, "onnxruntime", "checkpoint")
    port.dtype = half
    return port
