"""Faults of heads that share keys and values: which query reads which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder, global_of, rebind, rebound
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.graph.call import Call
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, attention_mix, attention_scores, heads_of

#: [G, T, K] and H → what each head reads, [H, T, K].
Shared = Callable[[Array, int], Array]


def _read(call: Call, index: int) -> Array:
    return call.values[call.site.inputs[index]]


def _scores(share: Shared, call: Call) -> Array:
    config = call.config
    q_HTK = heads_of(_read(call, 0), config.n_head)
    k_HSK = share(heads_of(_read(call, 1), config.n_kv), config.n_head)
    return attention_scores(q_HTK, k_HSK, config.keys.scale)


def _mix(share: Shared, call: Call) -> Array:
    v_GSK = heads_of(_read(call, 1), call.config.n_kv)
    return attention_mix(call.x, share(v_GSK, call.config.n_head))


def _grouped(config: Config) -> bool:
    """There are neighbours that share, and others that do not."""
    return not config.keys.fused and 1 < config.n_kv < config.n_head


def _inject(repeat: Callable[[Any, int], Any], decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        attn = decoder.attention(layer)
        eager = global_of(attn, "forward", "eager_attention_forward")
        mistaken = rebound(eager, repeat_kv=repeat)
        rebind(attn, "forward", eager_attention_forward=mistaken)


def _fault(
    name: str, summary: str, share: Shared, repeat: Callable[[Any, int], Any], seen: str
) -> Fault:
    operations = {"attn.scores": partial(_scores, share), "attn.mix": partial(_mix, share)}
    how = InTransformers(module=partial(_inject, repeat))
    predict = AtSites(operations)
    return Fault(name, "grouped", summary, seen, predict=predict, in_family=how, of=_grouped)


FAULTS = (
    _fault(
        "grouped-tiled",
        "lets head h read keys and values h mod G, where neighbours share them",
        lambda x_GSK, n_head: np.tile(x_GSK, (n_head // len(x_GSK), 1, 1)),
        lambda x, times: x.repeat(1, times, 1, 1),
        "repeat in the place of repeat_interleave; ONNX's own operator Attention",
    ),
    _fault(
        "grouped-first",
        "lets all heads read the first keys and values",
        lambda x_GSK, n_head: np.repeat(x_GSK[:1], n_head, axis=0),
        lambda x, times: x[:, :1].expand(-1, x.shape[1] * times, -1, -1),
        "multi-query code that reads a model with several groups",
    ),
    _fault(
        "grouped-reversed",
        "counts the groups of heads from the last one",
        lambda x_GSK, n_head: np.repeat(x_GSK[::-1], n_head // len(x_GSK), axis=0),
        lambda x, times: x.flip(1).repeat_interleave(times, dim=1),
        "",
    ),
)
