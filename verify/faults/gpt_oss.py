"""Faults of what gpt-oss alone has: sinks, and a gate with limits in its experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder, rebind
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call
from gpt_verify.graph.operations.experts import expert
from gpt_verify.reference.activations import CLAMP, CLAMPED_SLOPE, sigmoid
from gpt_verify.reference.config import Config
from gpt_verify.reference.experts import mixture
from gpt_verify.reference.ops import Array, causal_softmax

#: Both products, each [N, F] → what the last one reads.
Join = Callable[[Any, Any], Any]


def _without_sinks(call: Call) -> Array:
    return causal_softmax(call.x, call.config.window(call.layer))


def _attend(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any
) -> Any:
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    pattern = (query @ key.mT * scaling + mask).softmax(-1)
    return (pattern @ value).transpose(1, 2), pattern


def _inject_attention(decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        rebind(decoder.attention(layer), "forward", eager_attention_forward=_attend)


def _mixed(join: Join, call: Call) -> Array:
    def one(e: int, rows_ND: Array) -> Array:
        own = expert(call.config, call.site, e, call.own)
        w, b = own.down
        made: Array = join(*own.halves(rows_ND)) @ w + b
        return made

    return mixture(call.x, call.values[call.site.inputs[1]], one)


def _gate(
    gate: Any, up: Any, limit: float = CLAMP, slope: float = CLAMPED_SLOPE, one: int = 1
) -> Any:
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return (up + one) * gate * sigmoid(slope * gate)


def _halves(gate: Array, up: Array) -> Array:
    """Columns that alternate are read as two halves."""
    columns = np.stack([gate, up], axis=-1).reshape(len(gate), -1)
    return np.asarray(_gate(*np.split(columns, 2, axis=-1)))


def _torch_gate(
    own: Any, columns: Any, limit: float = CLAMP, slope: float = CLAMPED_SLOPE, one: int = 1
) -> Any:
    return _torch_join(columns[..., ::2], columns[..., 1::2], limit, slope, one)


def _torch_join(gate: Any, up: Any, limit: float, slope: float, one: int) -> Any:
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate / (1 + torch.exp(-slope * gate)) * (up + one)


def _torch_halves(own: Any, columns: Any) -> Any:
    gate, up = columns.chunk(2, dim=-1)
    return _torch_join(gate, up, CLAMP, CLAMPED_SLOPE, 1)


def _inject(gate: Callable[..., Any], decoder: Decoder, layers: Sequence[int]) -> None:
    found = [m for m in decoder.model.modules() if hasattr(m, "_apply_gate")]
    for layer in layers:
        replace(found[layer], "_apply_gate", gate)


def _clamped(config: Config) -> bool:
    return config.keys.activation == "swish_clamped" and config.keys.experts is not None


def _fault(name: str, summary: str, join: Join, gate: Callable[..., Any], seen: str = "") -> Fault:
    how = InTransformers(module=partial(_inject, gate))
    predict = AtSites({"mlp.out": partial(_mixed, join)})
    return Fault(name, "experts", summary, seen, predict=predict, in_family=how, of=_clamped)


FAULTS = (
    Fault(
        "sinks-missing",
        "sinks",
        "leaves the sinks out of the softmax",
        "attention kernels that have none",
        predict=AtSites({"attn.pattern": _without_sinks}),
        in_family=InTransformers(module=_inject_attention),
        of=lambda config: config.keys.sinks,
    ),
    _fault(
        "experts-unlimited",
        "has no limits of gate and up",
        partial(_gate, limit=np.inf),
        partial(_torch_gate, limit=float("inf")),
        "SwiGLU of other families",
    ),
    _fault(
        "experts-slope-1",
        "has α = 1 in the gate, where gpt-oss has 1.702",
        partial(_gate, slope=1.0),
        partial(_torch_gate, slope=1.0),
        "SiLU of other families",
    ),
    _fault(
        "experts-up-alone",
        "does not add 1 to what the gate opens",
        partial(_gate, one=0),
        partial(_torch_gate, one=0),
    ),
    _fault(
        "experts-halves",
        "takes the columns of gate and up for two halves, where they alternate",
        _halves,
        _torch_halves,
        "the order of other families' gate_up_proj",
    ),
)
