"""Faults of tying: the logits are correct, and head and lookup are not one matrix, are not trained
as one, or do not stay one.

They are injected by ``gpt_verify.laws.tying.injection``. Heads of their own that are shown are in
``gpt_verify.faults.head``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from gpt_verify.faults.fault import Fault, InModel


def _inject(name: str, model: Any, layers: Sequence[int]) -> None:
    from gpt_verify.laws.tying.injection import INJECTIONS

    INJECTIONS[name](model, layers)


def _tying(name: str, law: str, summary: str, seen: str = "", **more: Any) -> Fault:
    return Fault(
        f"tying-{name}",
        "tying",
        summary,
        seen,
        InModel(partial(_inject, name), layered=False),
        law=f"tying.{law}",
        **more,
    )


FAULTS = (
    _tying(
        "head-hidden",
        "storage",
        "multiplies with a copy of wte that no list of parameters shows, in a buffer or a closure",
        entails=("head-detached", "resizing-leaves-head"),
    ),
    _tying(
        "head-part-hidden",
        "storage",
        "multiplies with a hidden copy for a part of the vocabulary, as a sharded head keeps it",
        entails=("resizing-leaves-head",),
    ),
    _tying(
        "lookup-hidden",
        "storage",
        "looks tokens up in a copy of wte that no list of parameters shows",
        entails=("tying-lookup-detached",),
    ),
    _tying("lookup-detached", "gradient", "detaches what is looked up: only the head trains wte"),
    _tying(
        "lookup-scaled",
        "gradient",
        "scales the derivative of what is looked up",
        "embedding gradient shrink of GLM-130B (Zeng et al. 2022)",
    ),
    _tying(
        "padding-row",
        "gradient",
        "takes the last token for padding (padding_idx), whose row the lookup never trains",
    ),
    _tying(
        "by-frequency",
        "gradient",
        "divides the derivative of a row by how often its token occurs (scale_grad_by_freq)",
    ),
    _tying("head-scaled", "gradient", "scales the derivative of wte through the last product"),
    _tying(
        "by-data",
        "persistence",
        "ties by .data: two parameters in one memory, which copying and casting part",
    ),
    _tying(
        "parted-by-loading",
        "persistence",
        "assigns a tensor of its own to each name when a state is loaded",
        "load_state_dict(assign=True) of torch",
    ),
    _tying(
        "parted-by-casting",
        "persistence",
        "casts each parameter by itself, one that is shared twice",
    ),
    _tying(
        "parted-by-copying",
        "persistence",
        "comes back with a head of its own when it was copied deeply or pickled",
    ),
)
