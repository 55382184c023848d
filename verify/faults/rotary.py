"""Faults of rotary positions: which channels turn together, and by which tables.

Keys of the configuration that are lost, and layers that differ: ``rotary_keys.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder, global_of, rebind
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.numerics.precision import BFLOAT16
from gpt_verify.reference.architecture import Rope
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, heads_of, side_by_side
from gpt_verify.reference.positions import frequencies, rotate, turns
from gpt_verify.sites import Site

#: Cosine and sine → those that are used.
Table = Callable[[Array], Array]


def rope_at(config: Config, site: Site) -> Rope | None:
    """How the layer of a site turns; None where it does not."""
    assert site.layer is not None, "queries and keys belong to a layer"
    return config.rope(site.layer)


def rope_of(call: Call) -> Rope:
    rope = rope_at(call.config, call.site)
    assert rope is not None, "queries and keys that are turned"
    return rope


def places_of(call: Call, first: int = 0) -> Any:
    return np.tile(np.arange(first, first + len(call.x) // call.rows), call.rows)


def turned(
    call: Call, change: Callable[[Rope], Rope], first: int = 0, table: Table = lambda x: x
) -> Array:
    """Queries or keys turned in another way."""
    rope = change(rope_of(call))
    cos_TR, sin_TR = (table(x) for x in turns(rope, places_of(call, first), call.dtype))
    return side_by_side(rotate(heads_of(call.x, call.site.heads), cos_TR, sin_TR, rope))


def _backward(call: Call) -> Array:
    rope = rope_of(call)
    cos_TR, sin_TR = turns(rope, places_of(call), call.dtype)
    return side_by_side(rotate(heads_of(call.x, call.site.heads), cos_TR, -sin_TR, rope))


def some(of: Callable[[Rope], bool], config: Config) -> bool:
    return any(rope is not None and of(rope) for rope in config.keys.ropes)


def at(
    act: Override,
    of: Callable[[Rope], bool],
    kinds: Sequence[str] = ("q", "k"),
    quantising: bool = False,
) -> AtSites:
    """In place of the rotation of queries and keys, in layers that are turned in such a way."""

    def where(config: Config, site: Site) -> bool:
        rope = rope_at(config, site)
        return rope is not None and of(rope)

    operations = {f"attn.{kind}_rot": act for kind in kinds}
    return AtSites(operations, quantising=quantising, where=where)


def rotary(
    name: str,
    summary: str,
    act: Override,
    how: InTransformers,
    of: Callable[[Rope], bool] = lambda rope: True,
    seen: str = "",
    kinds: Sequence[str] = ("q", "k"),
    quantising: bool = False,
    **more: Any,
) -> Fault:
    """``act`` in place of the rotation of queries and keys, where some layer has such a one."""
    predict, able = at(act, of, kinds, quantising), partial(some, of)
    return Fault(name, "rotary", summary, seen, predict=predict, in_family=how, of=able, **more)


# In torch: the rotation


def _apart(x: Any, cos: Any, sin: Any) -> Any:
    """Channels that lie half of R apart."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _neighbours(x: Any, cos: Any, sin: Any) -> Any:
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def _own(decoder: Decoder, layer: int) -> Callable[[Any, Any, Any], Any]:
    rope = decoder.config.rope(layer)
    return _neighbours if rope is not None and rope.pairs else _apart


def turn(decoder: Decoder, layer: int, act: Callable[[Any, Any, Any], Any]) -> None:
    """``act(x [B, H, T, R], cos [B, 1, T, R/2], sin)`` in place of the rotation of a layer."""
    rope = decoder.config.rope(layer)
    if rope is None:
        return

    def both(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        half = rope.size // 2  # tables are written twice, or once in gpt-oss
        cos, sin = (table[..., :half].unsqueeze(unsqueeze_dim) for table in (cos, sin))
        parts = ((x[..., : 2 * half], x[..., 2 * half :]) for x in (q, k))
        return tuple(torch.cat([act(x, cos, sin), rest], -1) for x, rest in parts)

    def one(x: Any, sin: Any, cos: Any) -> Any:
        turned = act(x.transpose(1, 2), cos.unsqueeze(1), sin.unsqueeze(1))
        return turned.transpose(1, 2)

    named = {"apply_rotary_pos_emb": one if rope.pairs else both}
    rebind(decoder.attention(layer), "forward", **named)


def _turn(act: Callable[[Any, Any, Any], Any], decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        turn(decoder, layer, act)


def _backwards(decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        turn(decoder, layer, partial(_turned_back, _own(decoder, layer)))


def _turned_back(own: Callable[[Any, Any, Any], Any], x: Any, cos: Any, sin: Any) -> Any:
    return own(x, cos, -sin)


def _queries_alone(decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        if decoder.config.rope(layer) is not None:
            attn = decoder.attention(layer)
            act = partial(_first, global_of(attn, "forward", "apply_rotary_pos_emb"))
            rebind(attn, "forward", apply_rotary_pos_emb=act)


def _first(act: Callable[..., Any], q: Any, k: Any, *tables: Any, **more: Any) -> Any:
    return act(q, k, *tables, **more)[0], k


# In torch: the tables


def _tables(decoder: Decoder) -> list[Any]:
    return [m for name, m in decoder.model.named_modules() if name.endswith("rotary_emb")]


def _rounded(table: Any) -> Any:
    return table.to(torch.bfloat16).to(table.dtype)


def _rounded_tables(module: Any, act: Any, *args: Any, **more: Any) -> Any:
    return tuple(_rounded(table) for table in act(*args, **more))


def _round_tables(decoder: Decoder, layers: Sequence[int]) -> None:
    for module in _tables(decoder):
        wrap(module, "forward", _rounded_tables)
    for layer in layers:
        attn = decoder.attention(layer)
        if hasattr(attn, "embed_positions"):
            attn.embed_positions = _rounded(attn.embed_positions)


def _narrow_angles(call: Call) -> Array:
    rope = rope_of(call)
    f_R = BFLOAT16.round(frequencies(rope)).astype(call.dtype)
    places_T = BFLOAT16.round(places_of(call).astype(np.float64)).astype(call.dtype)
    angle_TR = BFLOAT16.round(places_T[:, None] * f_R).astype(call.dtype)
    gain = 1.0 if rope.scaling is None else rope.scaling.attention
    tables = gain * np.cos(angle_TR), gain * np.sin(angle_TR)
    return side_by_side(rotate(heads_of(call.x, call.site.heads), *tables, rope))


def _torch_narrow_angles(module: Any, act: Any, x: Any, position_ids: Any, *kind: Any) -> Any:
    prefix = f"{kind[0]}_" if kind else ""
    inv_freq = getattr(module, f"{prefix}inv_freq")
    gain = getattr(module, f"{prefix}attention_scaling")
    angles = position_ids[..., None].to(torch.bfloat16) * inv_freq.to(torch.bfloat16)
    written = act(x, position_ids, *kind)[0].shape[-1] // angles.shape[-1]
    angles = torch.cat([angles] * written, dim=-1).to(x.dtype)
    return angles.cos() * gain, angles.sin() * gain


def _narrow_all_angles(decoder: Decoder, layers: Sequence[int]) -> None:
    for module in _tables(decoder):
        wrap(module, "forward", _torch_narrow_angles)


def _narrow_frequencies(call: Call) -> Array:
    rope = rope_of(call)
    f_R = BFLOAT16.round(frequencies(rope)).astype(call.dtype)
    angle_TR = places_of(call).astype(call.dtype)[:, None] * f_R
    gain = 1.0 if rope.scaling is None else rope.scaling.attention
    tables = gain * np.cos(angle_TR), gain * np.sin(angle_TR)
    return side_by_side(rotate(heads_of(call.x, call.site.heads), *tables, rope))


def _torch_narrow_frequencies(
    module: Any, act: Any, x: Any, position_ids: Any, *kind: Any, **more: Any
) -> Any:
    prefix = f"{kind[0]}_" if kind else ""
    inv_freq = getattr(module, f"{prefix}inv_freq")
    module.__dict__[f"{prefix}inv_freq"] = _rounded(inv_freq)  # before the buffer of that name
    try:
        return act(x, position_ids, *kind, **more)
    finally:
        del module.__dict__[f"{prefix}inv_freq"]


def _narrow_all_frequencies(decoder: Decoder, layers: Sequence[int]) -> None:
    for module in _tables(decoder):
        wrap(module, "forward", _torch_narrow_frequencies)


def _late(module: Any, act: Any, x: Any, position_ids: Any, *kind: Any, **more: Any) -> Any:
    return act(x, position_ids + 1, *kind, **more)


def _count_from_one(decoder: Decoder, layers: Sequence[int]) -> None:
    for module in _tables(decoder):
        wrap(module, "forward", _late)


FAULTS = (
    rotary(
        "rotary-pairs",
        "turns neighbouring channels together, where the model turns those half of R apart",
        lambda call: turned(call, lambda rope: replace(rope, pairs=True)),
        InTransformers(module=partial(_turn, _neighbours)),
        lambda rope: not rope.pairs and rope.size > 2,
        "weights of Hugging Face in code of Meta's, without the permutation of q and k",
    ),
    rotary(
        "rotary-halves",
        "turns channels together that are half of R apart, where the model turns neighbours",
        lambda call: turned(call, lambda rope: replace(rope, pairs=False)),
        InTransformers(module=partial(_turn, _apart)),
        lambda rope: rope.pairs and rope.size > 2,
        "GPT-J's weights in code for GPT-NeoX",
    ),
    rotary(
        "rotary-missing",
        "does not turn queries and keys",
        lambda call: call.x,
        InTransformers(module=partial(_turn, lambda x, cos, sin: x)),
    ),
    rotary(
        "rotary-backwards",
        "turns queries and keys the other way round",
        _backward,
        InTransformers(module=_backwards),
        seen="the sign of the half that is exchanged: (x2, -x1) for (-x2, x1)",
    ),
    rotary(
        "rotary-queries-alone",
        "turns queries, and not keys",
        lambda call: call.x,
        InTransformers(module=_queries_alone),
        lambda rope: not rope.pairs,
        kinds=("k",),
    ),
    rotary(
        "rotary-table-bfloat16",
        "keeps cosine and sine in bfloat16",
        lambda call: turned(
            call, lambda rope: rope, table=lambda x: BFLOAT16.round(x).astype(x.dtype)
        ),
        InTransformers(module=_round_tables, layered=False),
        seen="a table that is cast with the model's weights",
        quantising=True,
        stored="bfloat16",
    ),
    rotary(
        "rotary-angles-bfloat16",
        "computes the angles of the rotary positions in bfloat16",
        _narrow_angles,
        InTransformers(module=_narrow_all_angles, layered=False),
        lambda rope: not rope.pairs and rope.size > 2,
        "inv_freq that is cast with the model's weights",
        quantising=True,
    ),
    rotary(
        "rotary-frequencies-bfloat16",
        "keeps the frequencies of the rotary positions in bfloat16",
        _narrow_frequencies,
        InTransformers(module=_narrow_all_frequencies, layered=False),
        lambda rope: not rope.pairs and rope.size > 2,
        "model.to(torch.bfloat16), which casts the buffer inv_freq as well",
    ),
    rotary(
        "rotary-from-one",
        "counts rotary positions from 1, which changes no score",
        lambda call: turned(call, lambda rope: rope, first=1),
        InTransformers(module=_count_from_one, layered=False),
        lambda rope: not rope.pairs,
        law=None,
        needs="nothing: every law must pass",
    ),
)
