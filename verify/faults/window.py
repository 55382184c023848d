"""Faults of attention with a window: its length, and which layers have one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, causal_softmax, sees
from gpt_verify.sites import Site, sites

#: A model and a layer → how many sources a target sees there, itself the last; None for all.
Length = Callable[[Config, int], int | None]
#: Whichever of these the softmax reads.
_SCORES = ("attn.scores", "attn.capped", "attn.sloped")


def _pattern(length: Length, call: Call) -> Array:
    sinks_H = np.tile(call.own(0), call.rows) if call.site.weights else None
    return causal_softmax(call.x, length(call.config, call.layer), sinks_H)


def _hidden(length: Length, call: Call) -> Array:
    """The scores as they enter the softmax, where a port hides what it should show."""
    scores_HTS = right(call)
    pattern = sites(call.config)[f"h.{call.layer}.attn.pattern"]
    if pattern.inputs[0] != call.site.name:
        return scores_HTS
    seen_TS = sees(scores_HTS.shape[-2:], length(call.config, call.layer))
    return np.where(seen_TS, scores_HTS, -np.inf)


def _seen(count: int, window: int | None) -> Any:
    """Which of so many sources each of as many targets sees."""
    places = torch.arange(count)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < (count if window is None else window))


def _masked(attn: Any, act: Any, hidden_states: Any, *args: Any, **more: Any) -> Any:
    seen = _seen(hidden_states.shape[1], attn.mistaken_window)
    mask = torch.zeros(seen.shape, dtype=hidden_states.dtype)
    more["attention_mask"] = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)[None, None]
    return act(hidden_states, *args, **more)


def _inject(length: Length, decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        attn, window = decoder.attention(layer), length(decoder.config, layer)
        if isinstance(getattr(attn, "bias", None), torch.Tensor):  # GPT-Neo's mask
            attn.bias = _seen(attn.bias.shape[-1], window)[None, None]
        else:
            attn.mistaken_window = window
            wrap(attn, "forward", _named(_masked))


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """The stream is the first argument, however the block names it."""

    def called(attn: Any, act: Any, *args: Any, **more: Any) -> Any:
        stream = args[0] if args else more.pop("hidden_states")
        return function(attn, act, stream, *args[1:], **more)

    return called


def _windowed(config: Config) -> bool:
    return any(window is not None for window in config.keys.windows)


def _some(config: Config) -> bool:
    """Some layers have one, others have none."""
    return _windowed(config) and None in config.keys.windows


def _own(config: Config) -> int:
    return next(window for window in config.keys.windows if window is not None)


def _by(more: int) -> Length:
    def length(config: Config, layer: int) -> int | None:
        window = config.window(layer)
        return None if window is None else window + more

    return length


def _others(config: Config, layer: int) -> int | None:
    return _own(config) if config.window(layer) is None else None


def _changes(length: Length, config: Config, site: Site) -> bool:
    assert site.layer is not None, "a pattern belongs to a layer"
    return length(config, site.layer) != config.window(site.layer)


def _fault(
    name: str,
    summary: str,
    length: Length,
    of: Callable[[Config], bool] = _windowed,
    seen: str = "",
    hides: bool = False,
    layered: bool = True,
) -> Fault:
    """``hides``: some sources that should be seen."""
    how = InTransformers(module=partial(_inject, length), layered=layered)
    predict = AtSites(
        {"attn.pattern": partial(_pattern, length)},
        where=partial(_changes, length),
        early=dict.fromkeys(_SCORES, partial(_hidden, length)) if hides else {},
    )
    return Fault(name, "window", summary, seen, predict=predict, in_family=how, of=of)


FAULTS = (
    _fault(
        "window-ignored",
        "lets every position see all that come before it, where the model has a window",
        lambda config, layer: None,
        seen="sliding_window that is not read, or a backend that has none",
    ),
    _fault(
        "window-one-more",
        "lets every position see one more than the window has",
        _by(1),
        seen="t - s ≤ W for t - s < W, in four families of one framework (Megatron-Bridge PR 2656)",
    ),
    _fault(
        "window-one-less",
        "lets every position see one less than the window has",
        _by(-1),
        lambda config: _windowed(config) and _own(config) > 1,
        "a window that counts the position itself, taken for one that does not",
        hides=True,
    ),
    _fault(
        "window-other-layers",
        "has a window in the layers that have none, and none in those that have one",
        _others,
        _some,
        "layers that are counted from 1",
        hides=True,
        layered=False,
    ),
    _fault(
        "window-everywhere",
        "has a window in every layer, where some have none",
        lambda config, layer: _own(config),
        _some,
        "layer_types that is not read",
        hides=True,
    ),
)
