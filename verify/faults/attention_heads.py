"""Faults of layout: how q, k, v and the heads are cut out of one tensor and put back into one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.attention import attention, inject_steps
from gpt_verify.faults.fault import Fault, of_operations
from gpt_verify.graph.call import Call, Override
from gpt_verify.reference.ops import Array, attention_mix, attention_scores

#: One call → q, k and v, each [H, T, K].
Cut = Callable[[Call], tuple[Array, Array, Array]]
#: What attention has mixed, [H, T, K] → [T, D].
Joined = Callable[[Array], Array]


def cut_operations(cut: Cut, values: bool = True) -> dict[str, Override]:
    """Scores and mix of other heads; ``values``: v is concerned as well."""
    operations: dict[str, Override] = {"scores": lambda call: attention_scores(*cut(call)[:2])}
    if values:
        operations["mix"] = lambda call: attention_mix(call.x, cut(call)[2])
    return operations


def _parts(call: Call) -> list[Array]:
    """q, k and v before the heads are taken apart, each [T, D]."""
    return np.split(call.at("attn.qkv"), 3, axis=-1)


def _each(head: Callable[[Array, int], Array], call: Call) -> tuple[Array, Array, Array]:
    """``head(part [T, D], n_head)`` → [H, T, K]."""
    q, k, v = (head(part, call.config.n_head) for part in _parts(call))
    return q, k, v


# q, k and v for one another


def _ordered(order: tuple[int, int, int], call: Call) -> tuple[Array, Array, Array]:
    parts = call.heads()
    return parts[order[0]], parts[order[1]], parts[order[2]]


def _torch_ordered(attn: Any, qkv: Any, order: tuple[int, int, int]) -> Any:
    width = qkv.shape[-1] // 3
    return tuple(attn.split(qkv[..., i * width : (i + 1) * width]) for i in order)


def _exchange(name: str, summary: str, order: tuple[int, int, int], seen: str = "") -> Fault:
    return attention(
        name,
        summary,
        cut_operations(partial(_ordered, order), values=order[2] != 2),
        {"heads": partial(_torch_ordered, order=order)},
        seen,
    )


# The axis of the heads


def _interleaved(part_TD: Array, n_head: int) -> Array:
    """Head h has the channels h, h + H, h + 2H …"""
    return np.stack([part_TD[:, h::n_head] for h in range(n_head)])


def _uninterleaved(mix_HTK: Array) -> Array:
    heads, t, size = mix_HTK.shape
    joined_TD = np.empty((t, heads * size), mix_HTK.dtype)
    for head in range(heads):
        joined_TD[:, head::heads] = mix_HTK[head]
    return joined_TD


def _torch_interleaved(attn: Any, x: Any) -> Any:
    return x.unflatten(-1, (-1, attn.n_head)).permute(0, 3, 1, 2)


def _torch_uninterleaved(attn: Any, x: Any) -> Any:
    return x.permute(0, 2, 3, 1).flatten(-2)


def _joined(join: Joined, cut: Cut, call: Call) -> Array:
    return join(np.einsum("hts,hsk->htk", call.x, cut(call)[2]))


def _merge(name: str, summary: str, join: Joined, in_torch: Any, seen: str = "") -> Fault:
    operations = {"mix": partial(_joined, join, Call.heads)}
    return attention(name, summary, operations, {"merge": in_torch}, seen)


def _split(
    name: str, summary: str, head: Callable[[Array, int], Array], in_torch: Any, seen: str = ""
) -> Fault:
    return attention(name, summary, cut_operations(partial(_each, head)), {"split": in_torch}, seen)


def _in_order(part_TD: Array, n_head: int) -> Array:
    return part_TD.reshape(len(part_TD), n_head, -1).transpose(1, 0, 2)


def _first_keys(call: Call) -> tuple[Array, Array, Array]:
    q_HTK, k_HSK, v_HSK = call.heads()
    return q_HTK, np.broadcast_to(k_HSK[:1], k_HSK.shape), np.broadcast_to(v_HSK[:1], v_HSK.shape)


def _torch_first_keys(attn: Any, qkv: Any) -> Any:
    q, k, v = (attn.split(part) for part in qkv.chunk(3, dim=-1))
    return q, k[:, :1].expand_as(k), v[:, :1].expand_as(v)


# Where c_attn's output is cut


def _by_head(call: Call) -> tuple[Array, Array, Array]:
    qkv_TC = call.at("attn.qkv")
    parts_THCK = qkv_TC.reshape(len(qkv_TC), call.config.n_head, 3, -1)
    q, k, v = (parts_THCK[:, :, part].transpose(1, 0, 2) for part in range(3))
    return q, k, v


def _torch_by_head(attn: Any, qkv: Any) -> Any:
    return qkv.unflatten(-1, (attn.n_head, -1)).transpose(1, 2).chunk(3, dim=-1)


def _by_channel(call: Call) -> tuple[Array, Array, Array]:
    qkv_TC = call.at("attn.qkv")
    q, k, v = (_in_order(qkv_TC[:, part::3], call.config.n_head) for part in range(3))
    return q, k, v


def _torch_by_channel(attn: Any, qkv: Any) -> Any:
    return tuple(attn.split(part) for part in qkv.unflatten(-1, (-1, 3)).unbind(-1))


def _late(call: Call) -> tuple[Array, Array, Array]:
    qkv_TC = call.at("attn.qkv")
    channels = np.arange(1, qkv_TC.shape[-1] + 1) % qkv_TC.shape[-1]
    q, k, v = (_in_order(p, call.config.n_head) for p in np.split(qkv_TC[:, channels], 3, axis=-1))
    return q, k, v


def _torch_late(attn: Any, qkv: Any) -> Any:
    return tuple(attn.split(part) for part in qkv.roll(-1, dims=-1).chunk(3, dim=-1))


def _linear(name: str, summary: str, cut: Cut, in_torch: Any, seen: str = "") -> Fault:
    """The place of the cut belongs to the family of the linear maps."""
    operations = {f"attn.{kind}": act for kind, act in cut_operations(cut).items()}
    inject = partial(inject_steps, {"heads": in_torch})
    return of_operations(name, "linear", summary, seen, operations, inject)


FAULTS = (
    _exchange("attention-qk-exchanged", "takes queries for keys and keys for queries", (1, 0, 2)),
    _exchange("attention-qv-exchanged", "takes queries for values, values for queries", (2, 1, 0)),
    _exchange("attention-kv-exchanged", "takes keys for values and values for keys", (0, 2, 1)),
    _exchange(
        "attention-kvq",
        "takes the three parts of c_attn for keys, values and queries, in this order",
        (2, 0, 1),
    ),
    _exchange(
        "attention-vqk",
        "takes the three parts of c_attn for values, queries and keys, in this order",
        (1, 2, 0),
    ),
    _split(
        "attention-heads-interleaved",
        "deals the channels out to the heads in turn, and puts the heads side by side afterwards",
        _interleaved,
        _torch_interleaved,
    ),
    attention(
        "attention-heads-dealt",
        "deals the channels out to the heads in turn, and collects them in the same way",
        {
            "scores": lambda call: attention_scores(*_each(_interleaved, call)[:2]),
            "mix": partial(_joined, _uninterleaved, partial(_each, _interleaved)),
        },
        {"split": _torch_interleaved, "merge": _torch_uninterleaved},
    ),
    _split(
        "attention-heads-reversed",
        "counts the heads from the last one, and does not put them back in order",
        lambda part, n_head: _in_order(part, n_head)[::-1],
        lambda attn, x: x.unflatten(-1, (attn.n_head, -1)).transpose(1, 2).flip(1),
    ),
    _split(
        "attention-heads-reshaped",
        "reshapes [T, D] to [H, T, K] without a transposition",
        lambda part, n_head: part.reshape(n_head, len(part), -1),
        lambda attn, x: x.reshape(x.shape[0], attn.n_head, x.shape[1], -1),
        "view(B, H, T, K) for view(B, T, H, K).transpose(1, 2)",
    ),
    _merge(
        "attention-merge-reshaped",
        "reshapes what the heads have made, [H, T, K], to [T, D] without a transposition",
        lambda mix: mix.reshape(mix.shape[1], -1),
        lambda attn, x: x.contiguous().view(x.shape[0], x.shape[2], -1),
        "transpose(1, 2) left out before view(B, T, D)",
    ),
    _merge(
        "attention-merge-interleaved",
        "lays the channels of the heads side by side in turn",
        _uninterleaved,
        _torch_uninterleaved,
    ),
    _merge(
        "attention-merge-reversed",
        "lays the heads side by side from the last to the first",
        lambda mix: np.concatenate(list(mix[::-1]), axis=-1),
        lambda attn, x: x.flip(1).transpose(1, 2).flatten(-2),
    ),
    attention(
        "attention-multi-query",
        "uses the keys and values of the first head in all heads",
        cut_operations(_first_keys),
        {"heads": _torch_first_keys},
        "multi_query of GPTBigCode in transformers",
    ),
    _linear(
        "linear-split-by-head",
        "cuts c_attn's output into heads first and each head into q, k and v",
        _by_head,
        _torch_by_head,
        "query_key_value of GPT-NeoX and BLOOM in transformers",
    ),
    _linear(
        "linear-split-by-channel",
        "takes every third channel of c_attn's output for q, k and v",
        _by_channel,
        _torch_by_channel,
    ),
    _linear(
        "linear-split-late",
        "cuts c_attn's output one channel too late; v ends with the first channel of q",
        _late,
        _torch_late,
    ),
)
