"""Faults of the weights: what can happen to a tensor between the checkpoint and the port.

``gpt_verify.diagnosis.tensors`` knows the same damage by the same names, and finds out on its own
where it struck: which bit, which layer, which row.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.fault import Array, Corrupt, Fault, InModel, OfTensors, Stored, tensors_of
from gpt_verify.faults.later import torch

_UPPER_HALF = np.uint32(0xFFFF0000)


def inject_tensors(
    corrupt: Corrupt, kinds: Sequence[str], model: Any, layers: Sequence[int]
) -> None:
    """Damage the tensors of these kinds in some layers of a ``gpt_verify.faults.model.Model``.

    All of them are computed before the first is written, so that they can be exchanged.
    """
    parameters = model.tensors()

    def lookup(name: str) -> Array:
        value: Array = parameters[name].detach().numpy().copy()
        return value

    names = tensors_of(kinds, layers)
    damaged = {name: corrupt(Stored(model.config, name, lookup(name), lookup)) for name in names}
    with torch.no_grad():
        for name, value in damaged.items():
            parameters[name].copy_(torch.from_numpy(np.array(value, np.float32)))


def bit_flip(bit: int) -> Corrupt:
    """One bit of one number in the middle; 0 is the last of the mantissa, 31 the sign."""

    def corrupt(t: Stored) -> Array:
        flipped = np.array(t.value, np.float32)
        flipped.reshape(-1).view(np.uint32)[flipped.size // 2 + 1] ^= np.uint32(1 << bit)
        return flipped

    return corrupt


def scaled(factor: float) -> Corrupt:
    """Every number times another."""
    return lambda t: t.value * np.float32(factor)


def rolled(rows: int) -> Corrupt:
    """Every row so many places later, the last ones first."""
    return lambda t: np.concatenate([t.value[-rows:], t.value[:-rows]])


def _bfloat16(t: Stored) -> Array:
    """The upper half of a float32, one more where the lower half is more than half of it."""
    bits = np.array(t.value, np.float32).view(np.uint32)
    lower = bits & ~_UPPER_HALF
    odd = (bits & np.uint32(0x10000)) != 0
    up = (lower > 0x8000) | ((lower == 0x8000) & odd)
    rounded = (bits & _UPPER_HALF) + up.astype(np.uint32) * np.uint32(0x10000)
    result: Array = rounded.view(np.float32)
    return result


def _bfloat16_cut(t: Stored) -> Array:
    return (np.array(t.value, np.float32).view(np.uint32) & _UPPER_HALF).view(np.float32)


def int8(axis: int | None) -> Corrupt:
    """Symmetric, 127 the largest magnitude: of the tensor, or along an axis."""

    def corrupt(t: Stored) -> Array:
        step = np.max(np.abs(t.value), axis=axis, keepdims=True) / np.float32(127)
        codes = np.rint(t.value / step).astype(np.int8)
        restored: Array = codes * step
        return restored

    return corrupt


def _row_zeroed(t: Stored) -> Array:
    zeroed = t.value.copy()
    zeroed[len(zeroed) // 3] = 0
    return zeroed


def _rows_exchanged(t: Stored) -> Array:
    order = np.arange(len(t.value))
    order[[0, -1]] = order[[-1, 0]]
    return t.value[order]


def _other_layer(t: Stored) -> Array:
    """The one before; in the first layer the one after. As it is where there is one layer only."""
    layer, _, rest = t.name.removeprefix("h").partition("/")
    other = int(layer) - 1 if int(layer) else min(1, t.config.n_layer - 1)
    return t.lookup(f"h{other}/{rest}")


def _transposed(t: Stored) -> Array:
    """[out, in] in memory, taken for [in, out]."""
    return np.ascontiguousarray(t.value.T).reshape(t.value.shape)


def _keys_first(t: Stored) -> Array:
    width = t.config.n_embd
    q, k, v = t.value[..., :width], t.value[..., width : 2 * width], t.value[..., 2 * width :]
    return np.concatenate([k, q, v], axis=-1)


def _interleaved(t: Stored) -> Array:
    """Head by head, q, k and v of each: the layout of GPT-NeoX and of Megatron."""
    width, size = t.config.n_embd, t.config.n_embd // t.config.n_head
    columns = [
        part * width + head * size + i
        for head in range(t.config.n_head)
        for part in range(3)
        for i in range(size)
    ]
    return t.value[..., columns]


def _heads_reversed(t: Stored) -> Array:
    size = t.config.n_embd // t.config.n_head
    rows = [head * size + i for head in reversed(range(t.config.n_head)) for i in range(size)]
    return t.value[rows]


def _pruned(t: Stored) -> Array:
    size = np.abs(t.value)
    return np.where(size < np.median(size), np.float32(0), t.value)


def _drawn(t: Stored) -> Array:
    """As GPT-2 was initialised, from a seed of the tensor's own."""
    drawn = np.random.default_rng(zlib.crc32(t.name.encode())).standard_normal(t.value.shape)
    return (0.02 * drawn).astype(np.float32)


def _weights(
    name: str,
    summary: str,
    corrupt: Corrupt,
    *tensors: str,
    seen: str = "",
    localised: bool = False,
    **more: Any,
) -> Fault:
    layered = tensors_of(tensors, [0]) != list(tensors)
    return Fault(
        f"weights-{name}",
        "weights",
        summary,
        seen,
        InModel(partial(inject_tensors, corrupt, tensors), layered),
        OfTensors(corrupt, tensors, localised),
        "weights.values",
        **more,
    )


FAULTS = (
    _weights(
        "bfloat16",
        "has a tensor that went through bfloat16",
        _bfloat16,
        "mlp/c_fc/w",
    ),
    _weights(
        "bfloat16-cut",
        "has a tensor that went through bfloat16, cut and not rounded",
        _bfloat16_cut,
        "attn/c_attn/w",
    ),
    _weights(
        "float16",
        "has a tensor that went through float16",
        lambda t: t.value.astype(np.float16).astype(np.float32),
        "mlp/c_proj/w",
    ),
    _weights(
        "int8-tensor",
        "has a tensor that was quantised to 8 bits with one scale",
        int8(None),
        "attn/c_attn/w",
    ),
    _weights(
        "int8-channel",
        "has a tensor that was quantised to 8 bits with a scale for each channel",
        int8(0),
        "mlp/c_fc/w",
    ),
    _weights(
        "mantissa-bit",
        "has a number of which one mantissa bit is flipped",
        bit_flip(0),
        "mlp/c_proj/w",
        localised=True,
    ),
    _weights(
        "exponent-bit",
        "has a number of which one exponent bit is flipped",
        bit_flip(25),
        "attn/c_proj/w",
        localised=True,
    ),
    _weights(
        "sign-bit",
        "has a number of which the sign is flipped",
        bit_flip(31),
        "mlp/c_fc/b",
        localised=True,
    ),
    _weights(
        "row-zeroed",
        "has a row of zeros in a tensor",
        _row_zeroed,
        "mlp/c_proj/w",
        localised=True,
    ),
    _weights(
        "rows-exchanged",
        "has two rows of the token table exchanged",
        _rows_exchanged,
        "wte",
        localised=True,
    ),
    _weights(
        "rows-shifted",
        "has every row of the position table one place too late",
        rolled(1),
        "wpe",
    ),
    _weights(
        "other-layer",
        "has a tensor of the layer beside",
        _other_layer,
        "attn/c_attn/w",
        needs="it is the same tensor in a model of one layer",
    ),
    _weights(
        "other-norm",
        "has the gain and bias of ln_2 in ln_1 as well",
        lambda t: t.lookup(t.name.replace("ln_1", "ln_2")),
        "ln_1/g",
        "ln_1/b",
    ),
    _weights(
        "transposed",
        "has a matrix whose memory is read in the other order",
        _transposed,
        "mlp/c_fc/w",
    ),
    _weights(
        "parts-permuted",
        "has the query and key parts of c_attn exchanged",
        _keys_first,
        "attn/c_attn/w",
        "attn/c_attn/b",
    ),
    _weights(
        "heads-interleaved",
        "has query, key and value of each head side by side in c_attn",
        _interleaved,
        "attn/c_attn/w",
        "attn/c_attn/b",
        seen="checkpoints of Megatron, which transformers' converter puts in order",
        needs="with one head the two layouts are the same",
    ),
    _weights(
        "heads-reversed",
        "has the heads in reverse order in the rows of the projection",
        _heads_reversed,
        "attn/c_proj/w",
        needs="with one head the two orders are the same",
    ),
    _weights(
        "scaled",
        "has a tensor of which every number is 1.001 times what it should be",
        scaled(1.001),
        "attn/c_proj/w",
    ),
    _weights(
        "missing",
        "has a bias that was never loaded and is zero",
        lambda t: np.zeros_like(t.value),
        "mlp/c_fc/b",
    ),
    _weights(
        "random",
        "has a matrix that was never loaded and is as it was initialised",
        _drawn,
        "mlp/c_fc/w",
    ),
    _weights(
        "pruned",
        "has a matrix of which the smaller half of the numbers is zero",
        _pruned,
        "mlp/c_proj/w",
    ),
)
