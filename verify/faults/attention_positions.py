"""Faults of the scores: queries and keys that are turned or normalised, and penalties for distance.

Later models tell positions apart in this way; code that is shared with them does it to GPT-2 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.attention import attention
from gpt_verify.faults.fault import Fault
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.reference.ops import Array, attention_scores, layer_norm


def _changed_queries(change: Callable[[Array], Array], call: Call) -> Array:
    q_HTK, k_HSK, _ = call.heads()
    return attention_scores(change(q_HTK), change(k_HSK))


def _torch_changed(attn: Any, q: Any, k: Any, change: Callable[[Any], Any]) -> Any:
    return change(q) @ change(k).transpose(-1, -2) * attn.scale(q)


def _rotated(x_HTK: Array, neighbours: bool) -> Array:
    """Su et al. 2021 (arXiv 2104.09864), equation 34: pairs of channels, turned by t θ."""
    size = x_HTK.shape[-1]
    pairs = np.arange(size // 2)
    angle_TP = np.outer(np.arange(x_HTK.shape[1]), 10000.0 ** (-2.0 * pairs / size))
    first, second = (2 * pairs, 2 * pairs + 1) if neighbours else (pairs, size // 2 + pairs)
    turned_HTK = np.zeros_like(x_HTK)
    a_HTP, b_HTP = x_HTK[..., first], x_HTK[..., second]
    turned_HTK[..., first] = a_HTP * np.cos(angle_TP) - b_HTP * np.sin(angle_TP)
    turned_HTK[..., second] = b_HTP * np.cos(angle_TP) + a_HTP * np.sin(angle_TP)
    return turned_HTK


def _torch_rotated(x: Any, neighbours: bool) -> Any:
    """The same as a product of complex numbers."""
    length, size = x.shape[-2:]
    steps = torch.arange(0, size, 2, dtype=x.dtype, device=x.device) / size
    positions = torch.arange(length, dtype=x.dtype, device=x.device)
    angle = positions[:, None] * torch.exp(-math.log(10000.0) * steps)
    split = x.unflatten(-1, (-1, 2)).unbind(-1) if neighbours else x.chunk(2, dim=-1)
    turned = torch.complex(*split) * torch.polar(torch.ones_like(angle), angle)
    parts = (turned.real, turned.imag)
    return torch.stack(parts, dim=-1).flatten(-2) if neighbours else torch.cat(parts, dim=-1)


def _rotary(name: str, summary: str, neighbours: bool, seen: str) -> Fault:
    turn = partial(_torch_rotated, neighbours=neighbours)
    return attention(
        name,
        summary,
        {"scores": partial(_changed_queries, partial(_rotated, neighbours=neighbours))},
        {"scores": partial(_torch_changed, change=turn)},
        seen,
        needs="heads of an even number of channels",
    )


def _alibi(call: Call) -> Array:
    """Press et al. 2022 (arXiv 2108.12409), section 3: a penalty for distance, by head."""
    scores_HTS = right(call)
    heads, t, s = scores_HTS.shape
    slope_H11 = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)[:, None, None]
    distance_TS = np.arange(t)[:, None] - np.arange(s)[None, :]
    value: Array = scores_HTS - slope_H11 * distance_TS
    return value


def _torch_alibi(attn: Any, q: Any, k: Any) -> Any:
    places = torch.arange(k.shape[-2], dtype=q.dtype, device=q.device)
    ratio = 2.0 ** (-8.0 / attn.n_head)
    slopes = torch.tensor([ratio ** (h + 1) for h in range(attn.n_head)], dtype=q.dtype)
    bias = slopes.to(q.device)[:, None, None] * (places[None, :] - places[-q.shape[-2] :, None])
    return q @ k.transpose(-1, -2) * attn.scale(q) + bias


def _normed(x_HTK: Array) -> Array:
    one_K = np.ones(x_HTK.shape[-1], x_HTK.dtype)
    return layer_norm(x_HTK, one_K, 0 * one_K)


def _torch_normed(x: Any) -> Any:
    mean, square = x.mean(-1, keepdim=True), (x * x).mean(-1, keepdim=True)
    return (x - mean) / (square - mean * mean + 1e-5) ** 0.5


FAULTS = (
    _rotary(
        "attention-rotary",
        "turns queries and keys by their position (rotary embedding, halves of a head paired)",
        False,
        "rotate_half of GPT-NeoX and LLaMA in transformers",
    ),
    _rotary(
        "attention-rotary-neighbours",
        "turns queries and keys by their position (rotary embedding, neighbouring channels paired)",
        True,
        "rotate_every_two of GPT-J in transformers",
    ),
    attention(
        "attention-alibi",
        "subtracts a penalty for distance from the scores (ALiBi)",
        {"scores": _alibi},
        {"scores": _torch_alibi},
        "alibi of BLOOM in transformers",
    ),
    attention(
        "attention-normed-queries",
        "normalises the queries and keys of each head",
        {"scores": partial(_changed_queries, _normed)},
        {"scores": partial(_torch_changed, change=_torch_normed)},
        "query-key normalisation of later models",
    ),
)
