"""Faults of one product that makes q, k and v: in which order they lie in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.places import Place
from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import wrap
from gpt_verify.graph.call import Call
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import (
    Array,
    attention_mix,
    attention_scores,
    heads_of,
    shared,
    side_by_side,
)
from gpt_verify.reference.positions import rotate, turns
from gpt_verify.sites import Site

_PARTS = ("q", "k", "v")


def by_head(config: Config) -> bool:
    """Files keep q, k and v of each head side by side, in one matrix."""
    family = FAMILIES.get(config.architecture)
    if family is None or config.keys.fused or config.n_head == 1:
        return False
    q, k = (family.places(config)[f"h#/attn/{part}"] for part in "qk")
    return isinstance(q, Place) and isinstance(k, Place) and q.scope == k.scope


def _as_block(call: Call, part: str) -> Array:
    """What three blocks would be: heads of q, k and v in turn, cut into thirds; [H, T, K]."""
    heads_3HTK = [heads_of(call.at(f"attn.{p}"), call.config.n_head) for p in _PARTS]
    columns_TX = np.concatenate(
        [np.concatenate(of_head, axis=-1) for of_head in zip(*heads_3HTK, strict=True)], axis=-1
    )
    thirds = np.split(columns_TX, 3, axis=-1)
    return heads_of(thirds[_PARTS.index(part)], call.config.n_head)


def _turned(call: Call) -> Array:
    rope = call.config.rope(call.layer)
    assert rope is not None, "queries and keys that are turned"
    part = call.site.kind.removeprefix("attn.").removesuffix("_rot")
    places_T = np.tile(np.arange(len(call.x) // call.rows), call.rows)
    return side_by_side(rotate(_as_block(call, part), *turns(rope, places_T, call.dtype), rope))


def _scores(call: Call) -> Array:
    q_HTK, k_HSK = (_as_block(call, part) for part in "qk")
    return attention_scores(q_HTK, shared(k_HSK, call.config.n_head), call.config.keys.scale)


def _mix(call: Call) -> Array:
    return attention_mix(call.x, _as_block(call, "v"))


def _where(config: Config, site: Site) -> bool:
    """Of scores alone where nothing is turned before."""
    assert site.layer is not None, "attention belongs to a layer"
    return site.kind != "attn.scores" or config.rope(site.layer) is None


def _inject(decoder: Decoder, layers: Sequence[int]) -> None:
    """What the model cuts by heads is laid so that it gets the blocks."""
    shape = 3, decoder.config.n_head, -1

    def forward(module: Any, act: Any, x: Any) -> Any:
        return act(x).unflatten(-1, shape).transpose(-3, -2).flatten(-3)

    for layer in layers:
        wrap(decoder.at("attn/q", layer), "forward", forward)


FAULTS = (
    Fault(
        "linear-qkv-blocks",
        "linear",
        "cuts what makes q, k and v into three blocks, where those of each head lie side by side",
        "the order of GPT-2's c_attn, in code for GPT-NeoX or BLOOM",
        predict=AtSites(
            {
                "attn.q_rot": _turned,
                "attn.k_rot": _turned,
                "attn.scores": _scores,
                "attn.mix": _mix,
            },
            where=_where,
        ),
        in_family=InTransformers(module=_inject),
        of=by_head,
    ),
)
