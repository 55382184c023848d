"""Faults of gated MLPs: which of the two products is the gate, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import replace
from gpt_verify.graph.call import Call
from gpt_verify.reference.activations import ACTIVATIONS
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array

#: The activation, gate and up → what the last product reads.
Join = Callable[[Callable[[Any], Any], Any, Any], Any]


def _joined(join: Join, call: Call) -> Array:
    gate, up = (call.values[name] for name in call.site.inputs)
    made: Array = join(ACTIVATIONS[call.config.keys.activation], gate, up)
    return made


def _in_torch(join: Join, decoder: Decoder, layers: Sequence[int]) -> None:
    def forward(mlp: Any, x: Any) -> Any:
        return mlp.down_proj(join(mlp.act_fn, mlp.gate_proj(x), mlp.up_proj(x)))

    for layer in layers:
        replace(decoder.around("mlp/down", layer), "forward", forward)


def _gated(config: Config) -> bool:
    keys = config.keys
    return keys.gated and keys.experts is None and keys.activation != "swish_clamped"


def _fault(name: str, summary: str, join: Join, in_torch: Join, seen: str = "") -> Fault:
    how = InTransformers(module=partial(_in_torch, in_torch))
    predict = AtSites({"mlp.act": partial(_joined, join)})
    return Fault(name, "gated", summary, seen, predict=predict, in_family=how, of=_gated)


FAULTS = (
    _fault(
        "gated-exchanged",
        "takes the gate for what it opens, and the other way round",
        lambda act, gate, up: act(up) * gate,
        lambda act, gate, up: gate.mul(act(up)),
        "w1 and w3 of Meta's Llama, or the halves of one matrix, in the other order",
    ),
    _fault(
        "gated-both-activated",
        "applies the activation to both products of a gated MLP",
        lambda act, gate, up: act(gate) * act(up),
        lambda act, gate, up: act(up).mul(act(gate)),
    ),
    _fault(
        "gated-not-activated",
        "multiplies the gate without an activation",
        lambda act, gate, up: gate * up,
        lambda act, gate, up: up.mul(gate),
        "the bilinear layer of Shazeer 2020",
    ),
    _fault(
        "gated-activated-late",
        "applies the activation to the product of gate and up",
        lambda act, gate, up: act(gate * up),
        lambda act, gate, up: act(up.mul(gate)),
    ),
    _fault(
        "gated-ungated",
        "leaves out what the gate opens",
        lambda act, gate, up: act(gate),
        lambda act, gate, up: act(gate.clone()),
    ),
    _fault(
        "gated-added",
        "adds the activated gate to the other product, and does not multiply",
        lambda act, gate, up: act(gate) + up,
        lambda act, gate, up: up.add(act(gate)),
    ),
)
