"""The table of tensors: which names a checkpoint has, with which shapes, for what.

GPT's and GPT-2's names are the variables of OpenAI's graph without the scope ``model/`` (gpt-2
``src/model.py``: ``variable_scope`` at lines 30, 52, 102, 117, 125 and 149). What these have not is
named in their style.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.config import Config

Array = NDArray[np.floating]
#: What lies side by side in the last axis of ``c_attn``: gpt-2 ``src/model.py:104``.
QKV = ("q", "k", "v")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the checkpoint.

    Attributes:
        name: the checkpoint's own name, for example ``h0/attn/c_attn/w``.
        shape: as the model uses it; ``[in, out]`` for matrices.
        stored_shape: as the file has it. OpenAI's ``conv1d`` keeps a leading 1, the width of a
            convolution over one position: ``[1, in, out]``.
        role: ``embedding``, ``gain``, ``bias`` or ``matrix``.
        parts: names of what lies side by side in its last axis, in equal shares; empty where it is
            one thing.
    """

    name: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    role: str
    parts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of one of its parts."""
        return (*self.shape[:-1], self.shape[-1] // max(1, len(self.parts)))


def tensor_table(config: Config) -> dict[str, TensorSpec]:
    """Every tensor of a model of this size, in the order in which the forward pass reads them; of a
    sum that is normed, the norm before what is added."""
    keys, d, v = config.keys, config.n_embd, config.n_vocab
    table: dict[str, TensorSpec] = {}

    def vector(name: str, role: str, size: int, parts: tuple[str, ...] = ()) -> None:
        table[name] = TensorSpec(name, (size,), (size,), role, parts)

    def norm(scope: str, size: int = d) -> None:
        vector(f"{scope}/g", "gain", size)
        if not keys.norm.rms:
            vector(f"{scope}/b", "bias", size)

    def conv1d(scope: str, n_in: int, n_out: int, bias: bool, parts: tuple[str, ...] = ()) -> None:
        shape = n_in, n_out
        table[f"{scope}/w"] = TensorSpec(f"{scope}/w", shape, (1, *shape), "matrix", parts)
        if bias:
            vector(f"{scope}/b", "bias", n_out, parts)

    def rows(name: str, count: int) -> None:
        table[name] = TensorSpec(name, (count, d), (count, d), "embedding")

    def attention(at: str) -> None:
        q, kv = (n * config.head_size for n in (config.n_head, config.n_kv))
        if keys.fused:
            conv1d(f"{at}/c_attn", d, len(QKV) * d, True, QKV)
        else:
            for part, size in (("q", q), ("k", kv), ("v", kv)):
                conv1d(f"{at}/{part}", d, size, keys.bias_qkv)
            for part, size in (("q", q), ("k", kv)):
                if keys.qk_norm is not None:
                    norm(f"{at}/{part}_norm", size if keys.qk_norm == "all" else config.head_size)
        if keys.sinks:
            vector(f"{at}/sinks", "bias", config.n_head)
        conv1d(f"{at}/c_proj" if keys.fused else f"{at}/o", q, d, keys.bias_out)

    def gated(at: str) -> None:
        conv1d(f"{at}/gate", d, config.n_inner, keys.bias_mlp)
        conv1d(f"{at}/up", d, config.n_inner, keys.bias_mlp)
        conv1d(f"{at}/down", config.n_inner, d, keys.bias_mlp)

    def mlp(at: str) -> None:
        if keys.experts is not None:
            conv1d(f"{at}/router", d, keys.experts.count, keys.experts.bias)
            for e in range(keys.experts.count):
                gated(f"{at}/experts/{e}")
        elif keys.gated:
            gated(at)
        else:
            conv1d(f"{at}/c_fc", d, config.n_inner, keys.bias_mlp)
            conv1d(f"{at}/c_proj", config.n_inner, d, keys.bias_mlp)

    rows("wte", v)
    if keys.table:
        rows("wpe", config.n_ctx + keys.table_offset)
    if keys.norm_embed:
        norm("ln_embed")
    for layer in range(config.n_layer):
        for branch, scope, ln in ((attention, "attn", "ln_1"), (mlp, "mlp", "ln_2")):
            own = ln == "ln_1" or keys.parallel != 1
            if (keys.norm_first and own) or keys.norm_sum:
                norm(f"h{layer}/{ln}")
            branch(f"h{layer}/{scope}")
            if keys.norm_branch:
                norm(f"h{layer}/{ln}_after")
    if keys.norm_last:
        norm("ln_f")
    if not config.tied:
        rows("lm_head", v)
    if keys.bias_head:
        vector("lm_head/b", "bias", v)
    return table


def split_qkv(value: Array) -> list[Array]:
    """Queries, keys and values of ``c_attn``, or of what it makes: views along the last axis."""
    return np.split(value, len(QKV), axis=-1)


def parameter_count(config: Config) -> int:
    """Number of parameters; where lm_head is wte, it is counted once."""
    return sum(spec.size for spec in tensor_table(config).values())
