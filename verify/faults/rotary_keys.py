"""Faults of rotary positions: keys of the configuration that are lost or mistaken, and layers that
differ from each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gpt_verify.faults.family_config import each_rope
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.rotary import at, places_of, rope_at, rotary, some, turned
from gpt_verify.graph.call import Call
from gpt_verify.reference.architecture import Rope
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, attention_scores, heads_of, shared
from gpt_verify.reference.positions import rotate, turns

#: What configurations have where nobody says otherwise: Su et al. 2021, section 3.2.2.
DEFAULT = 10_000.0


def _changed(
    name: str,
    summary: str,
    change: Callable[[Rope], Rope],
    said: Callable[[dict[str, Any]], dict[str, Any]],
    of: Callable[[Rope], bool],
    seen: str = "",
) -> Fault:
    """A key of the rotary positions that is lost, or read as another."""
    how = InTransformers(config=lambda config, _: each_rope(config, said))
    return rotary(name, summary, lambda call: turned(call, change), how, of, seen)


def _scaling_lost(said: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        key: said[key] for key in ("rope_theta", "partial_rotary_factor") if key in said
    }
    return {**kept, "rope_type": "default"}


def _only_factor(said: dict[str, Any]) -> dict[str, Any]:
    return {**_scaling_lost(said), "rope_type": "linear", "factor": said["factor"]}


def _linear(rope: Rope) -> Rope:
    assert rope.scaling is not None, "frequencies that are scaled"
    return replace(rope, scaling=replace(rope.scaling, kind="linear", attention=1.0))


def _unscaled(rope: Rope) -> Rope:
    assert rope.scaling is not None, "tables that are scaled"
    return replace(rope, scaling=replace(rope.scaling, attention=1.0))


def _everywhere(call: Call) -> Array:
    """Scores of a layer whose queries and keys are not turned, as if they were."""
    rope = next(rope for rope in call.config.keys.ropes if rope is not None)
    q_TX, k_TX = (call.values[name] for name in call.site.inputs)
    config, tables = call.config, turns(rope, places_of(call), call.dtype)
    q_HTK = rotate(heads_of(q_TX, config.n_head), *tables, rope)
    k_GSK = rotate(heads_of(k_TX, config.n_kv), *tables, rope)
    return attention_scores(q_HTK, shared(k_GSK, config.n_head), config.keys.scale)


def _turn_everywhere(config: Any, _: Config) -> None:
    config.no_rope_layers = [1] * len(config.no_rope_layers)


def _of_full(config: Config) -> Rope:
    """How layers without a window turn."""
    whole = next(i for i, window in enumerate(config.keys.windows) if window is None)
    rope = config.rope(whole)
    assert rope is not None, "a layer that has positions"
    return rope


def _of_full_layers(call: Call) -> Array:
    return turned(call, lambda _: _of_full(call.config))


def _two_kinds(config: Config) -> bool:
    return len(set(config.keys.ropes)) > 1 and None not in config.keys.ropes


def _as_full(config: Any, _: Config) -> None:
    whole = config.rope_parameters["full_attention"]
    config.rope_parameters = dict.fromkeys(config.rope_parameters, whole)


def _whole(config: Any, model: Config) -> None:
    if hasattr(config, "rotary_dim"):
        config.rotary_dim = model.head_size
    else:
        each_rope(config, lambda said: {**said, "partial_rotary_factor": 1.0})


FAULTS = (
    _changed(
        "rotary-theta-lost",
        "turns by θ = 10,000, where the model has another θ",
        lambda rope: replace(rope, theta=DEFAULT),
        lambda said: {**said, "rope_theta": DEFAULT},
        lambda rope: rope.theta != DEFAULT and rope.size > 2,
        "rope_theta of transformers 4 that is not read from rope_parameters of 5 (MarinFold PR "
        "184, DeepSpeed PR 8345)",
    ),
    _changed(
        "rotary-scaling-ignored",
        "does not scale the rotary frequencies",
        lambda rope: replace(rope, scaling=None),
        _scaling_lost,
        lambda rope: rope.scaling is not None,
        "rope_scaling that is read from a key of another version",
    ),
    _changed(
        "rotary-scaling-everywhere",
        "divides every rotary frequency by the factor, short wavelengths as well",
        _linear,
        _only_factor,
        lambda rope: rope.scaling is not None and rope.scaling.kind == "llama3",
        "rope_scaling of Llama 3 of which only the factor is read",
    ),
    _changed(
        "rotary-attention-lost",
        "does not multiply cosine and sine by YaRN's factor of attention",
        _unscaled,
        lambda said: {**said, "attention_factor": 1.0},
        lambda rope: rope.scaling is not None and rope.scaling.attention != 1.0,
        "YaRN of which the frequencies alone are written (the same factor of DeepSeek-V2 and "
        "Mistral 4: transformers PR 47435)",
    ),
    Fault(
        "rotary-whole",
        "rotary",
        "turns all channels of a head, where the model turns the first R of them",
        "partial_rotary_factor that is not read",
        predict=at(
            lambda call: turned(call, lambda rope: replace(rope, size=call.config.head_size)),
            lambda rope: True,
        ),
        in_family=InTransformers(config=_whole),
        of=lambda config: some(lambda rope: rope.size < config.head_size, config),
    ),
    Fault(
        "rotary-every-layer",
        "rotary",
        "turns queries and keys of layers that have no positions as well",
        "no_rope_layers that is not read",
        predict=AtSites(
            {"attn.scores": _everywhere}, where=lambda config, site: rope_at(config, site) is None
        ),
        in_family=InTransformers(config=_turn_everywhere),
        of=lambda config: None in config.keys.ropes and some(lambda rope: True, config),
    ),
    Fault(
        "rotary-one-theta",
        "rotary",
        "turns layers that have a window by the frequencies of those that have none",
        "rope_local_base_freq of Gemma 3 that is not read",
        predict=AtSites(
            {"attn.q_rot": _of_full_layers, "attn.k_rot": _of_full_layers},
            where=lambda config, site: rope_at(config, site) != _of_full(config),
        ),
        in_family=InTransformers(config=_as_full),
        of=_two_kinds,
    ),
)
