"""Faults of the norms of queries and keys: whether, when, and over what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder, global_of, rebind
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.faults.rms_norm import by, plain, torch_eps
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array

SCOPES = ("attn/q_norm", "attn/k_norm")


def _predicted(**acts: Callable[[Call], Array]) -> AtSites:
    """``norm`` and ``rot``: of queries and of keys alike."""
    return AtSites({f"attn.{part}_{kind}": act for kind, act in acts.items() for part in "qk"})


def _gain(call: Call) -> Array:
    """That of the norm of the same part, at the site of its rotation."""
    scope = call.site.kind.removesuffix("_rot").replace(".", "/")
    return by(call.w(f"h{call.layer}/{scope}_norm/g"), call.config.keys.norm)


def _late(call: Call) -> Array:
    """Normed when it is turned already."""
    turned_TX, g_D = right(call), _gain(call)
    parts = turned_TX.reshape(len(turned_TX), -1, len(g_D))
    return plain(parts, g_D, call.config.keys.norm.epsilon).reshape(turned_TX.shape)


def _over_all(call: Call) -> Array:
    """The mean is taken over all heads, and each head has the gain."""
    norm, g_K = call.config.keys.norm, by(call.own(0), call.config.keys.norm)
    one = np.ones(1, call.dtype)
    normed_TX = plain(call.x, one, norm.epsilon)
    return normed_TX * np.tile(g_K, call.x.shape[-1] // len(g_K))


def _by_head(call: Call) -> Array:
    """The mean is taken over each head, and all have one gain."""
    norm, heads = call.config.keys.norm, call.site.heads
    parts = call.x.reshape(len(call.x), heads, -1)
    normed = plain(parts, np.ones(1, call.dtype), norm.epsilon)
    return normed.reshape(call.x.shape) * by(call.own(0), norm)


def _inject(forward: Callable[[Any, Any], Any], decoder: Decoder, layers: Sequence[int]) -> None:
    for norm in decoder.norms(SCOPES, layers):
        replace(norm, "forward", forward)


def _rms(x: Any, eps: float, axes: tuple[int, ...] = (-1,)) -> Any:
    return x / torch.sqrt(x.square().mean(axes, keepdim=True) + eps)


def _one(decoder: Decoder) -> float:
    return float(decoder.config.keys.norm.plus_one)


def _inject_late(decoder: Decoder, layers: Sequence[int]) -> None:
    """The norm stands behind the rotation, whose heads are [B, H, T, K]."""
    one, whole = _one(decoder), decoder.config.keys.qk_norm == "all"

    def normed(norm: Any, x: Any) -> Any:
        gain = norm.weight + one
        if whole:
            shape = x.shape
            flat = x.transpose(1, 2).flatten(2)
            made = _rms(flat, torch_eps(norm)) * gain
            return made.unflatten(-1, (shape[1], shape[3])).transpose(1, 2)
        return _rms(x, torch_eps(norm)) * gain

    for layer in layers:
        attn = decoder.attention(layer)
        act = global_of(attn, "forward", "apply_rotary_pos_emb")

        def turn(
            q: Any, k: Any, *tables: Any, attn: Any = attn, act: Any = act, **more: Any
        ) -> Any:
            q, k = act(q, k, *tables, **more)
            return normed(attn.q_norm, q), normed(attn.k_norm, k)

        rebind(attn, "forward", apply_rotary_pos_emb=turn)
    _inject(lambda norm, x: x, decoder, layers)


def _inject_over_all(decoder: Decoder, layers: Sequence[int]) -> None:
    one = _one(decoder)
    # [B, T, H, K], or, as Gemma 3 has it, [B, H, T, K].
    heads = 1 if decoder.config.architecture.startswith("gemma3") else 2

    def forward(norm: Any, x: Any) -> Any:
        return _rms(x, torch_eps(norm), (heads, -1)) * (norm.weight + one)

    _inject(forward, decoder, layers)


def _inject_by_head(decoder: Decoder, layers: Sequence[int]) -> None:
    one, size = _one(decoder), decoder.config.head_size

    def forward(norm: Any, x: Any) -> Any:
        made = _rms(x.unflatten(-1, (-1, size)), torch_eps(norm)).flatten(-2)
        return made * (norm.weight + one)

    _inject(forward, decoder, layers)


def _normed(config: Config) -> bool:
    return config.keys.qk_norm is not None


def _turned(config: Config) -> bool:
    """Wherever they are normed they are turned: else nothing is late."""
    return _normed(config) and None not in config.keys.ropes


FAULTS = (
    Fault(
        "qk-norm-missing",
        "qk",
        "does not norm queries and keys",
        "Qwen 3's weights in code for Qwen 2",
        predict=_predicted(norm=lambda call: call.x),
        in_family=InTransformers(module=partial(_inject, lambda norm, x: x)),
        of=_normed,
    ),
    Fault(
        "qk-norm-after-rotation",
        "qk",
        "norms queries and keys when they are turned already",
        predict=_predicted(norm=lambda call: call.x, rot=_late),
        in_family=InTransformers(module=_inject_late),
        of=_turned,
    ),
    Fault(
        "qk-norm-over-heads",
        "qk",
        "norms queries and keys over all heads together, where each is normed by itself",
        "the norm of OLMo 2, in code for Qwen 3",
        predict=_predicted(norm=_over_all),
        in_family=InTransformers(module=_inject_over_all),
        of=lambda config: config.keys.qk_norm == "head" and config.n_kv > 1,
    ),
    Fault(
        "qk-norm-by-head",
        "qk",
        "norms queries and keys of each head by itself, where all are normed together",
        "the norm of Qwen 3, in code for OLMo 2",
        predict=_predicted(norm=_by_head),
        in_family=InTransformers(module=_inject_by_head),
        of=lambda config: config.keys.qk_norm == "all" and config.n_kv > 1,
    ),
)
