"""Whether rows and columns in another order than the checkpoint's are a layout or a mistake.

Bits that were found in another order are read so, or are what a converter left behind. Neurons of
an MLP may stand in any order, if its matrices have the same one. So may heads, and the channels
within each head: of values, if what reads them has the same; of queries, if the keys that they meet
have it. Rotary positions tell channels apart, and are laid out in one of two ways, queries and keys
each by themselves where a converter has forgotten one of them; whether they are turned as they lie,
and which heads meet, is seen in the scores and in what is made of them, which are judged from both
in the checkpoint's order.
Of heads that are read from one matrix the port itself has to tell. Elsewhere another order computes
something else. What is a mistake is taken to lie in the checkpoint's order, and so differs from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt_verify.findings import layer_of
from gpt_verify.matching.assembly import Assembly, Form
from gpt_verify.reference.config import Config
from gpt_verify.reference.positions import pairs

Group = Mapping[str, Assembly]


@dataclass(frozen=True)
class Reading:
    """How the attention of one layer reads what lies in another order.

    Attributes:
        qkv: it reads ``c_attn`` in the order in which it lies, or puts it in the checkpoint's.
        ordered: the latter.
        mix: the rows of ``c_proj`` are in the order of what is multiplied with them.
    """

    qkv: bool = False
    ordered: bool = False
    mix: bool = False


def not_shown(layer: int) -> Reading:
    """A port that shows nothing but its weights is taken to read no other order than the
    checkpoint's."""
    return Reading()


def confirmed(
    assemblies: Sequence[Assembly], config: Config, read: Callable[[int], Reading] = not_shown
) -> list[Assembly]:
    """The assemblies that remain when those are left out that are in the wrong order.

    Args:
        assemblies: as they were found.
        config: the checkpoint's sizes.
        read: asked of the layers in which attention has another order.
    """
    if all(assembly.straight for assembly in assemblies):
        return list(assemblies)
    by_layer: dict[int | None, dict[str, Assembly]] = {}
    for assembly in assemblies:
        layer = layer_of(assembly.tensor)
        kind = assembly.tensor if layer is None else assembly.tensor.partition("/")[2]
        by_layer.setdefault(layer, {})[kind] = assembly
    kept: list[Assembly] = []
    for layer, group in by_layer.items():
        allowed = _neurons(group) | _attention(group, config, layer)
        ordered = False
        attention = [group[k] for k in ("attn/c_attn/w", "attn/c_proj/w") if k in group]
        if layer is not None and not all(a.straight for a in attention):
            reading = read(layer)
            ordered = reading.qkv and reading.ordered
            allowed |= _with_bias(group, "attn/c_attn", "columns") if reading.qkv else set()
            allowed |= {"attn/c_proj/w"} if reading.mix and _is(group, "rows") else set()
        for kind, assembly in group.items():
            if assembly.straight:
                kept.append(assembly)
            elif kind in allowed:
                mine = ordered and kind.startswith("attn/c_attn/")
                kept.append(replace(assembly, ordered=mine))
            elif len(assembly.patches) > 1:
                kept.append(assembly.straightened)
    return kept


def _neurons(group: Group) -> set[str]:
    """Those of an MLP where all of its matrices have the same order."""
    for ups, down in ((("mlp/c_fc",), "mlp/c_proj"), (("mlp/gate", "mlp/up"), "mlp/down")):
        orders = [_order(group, up, "columns") for up in ups]
        order = _order(group, down, "rows")
        if order is not None and all(up == order for up in orders):
            return set().union(*(_with_bias(group, up, "columns") for up in ups)) | {f"{down}/w"}
    return set()


def _attention(group: Group, config: Config, layer: int | None) -> set[str]:
    """Queries, keys, values and what reads them: those whose heads stand in one order, and the
    channels of each head in that of the head that it meets, or of either layout of rotary
    positions."""
    times, size = config.n_head // config.n_kv, config.head_size
    q = _heads(group, "attn/q", "columns", config.n_head, size)
    o = _heads(group, "attn/o", "rows", config.n_head, size)
    k, v = (_heads(group, scope, "columns", config.n_kv, size) for scope in ("attn/k", "attn/v"))
    if q is None or k is None or v is None or o is None:
        return set()
    if list(q) != list(o) or list(k) != list(v):
        return set()
    found: set[str] = set()
    layouts = _rotary_layouts(config, layer)
    if all(q[head] == k[head // times] or {q[head], k[head // times]} <= layouts for head in q):
        found |= _with_bias(group, "attn/q", "columns") | _with_bias(group, "attn/k", "columns")
        found |= _gains(group, "q", set(q.values())) | _gains(group, "k", set(k.values()))
    if all(o[head] == v[head // times] for head in o):
        found |= _with_bias(group, "attn/v", "columns") | {"attn/o/w"}
    sinks = group.get("attn/sinks")
    if sinks is not None and sinks.order == tuple(q):
        found.add("attn/sinks")
    return found


def _rotary_layouts(config: Config, layer: int | None) -> set[tuple[int, ...]]:
    """The orders that the channels of a head may have: the checkpoint's and the other layout's."""
    rope = None if layer is None else config.rope(layer)
    if rope is None:
        return set()
    own = tuple(range(config.head_size))
    a, b = (own[some] for some in pairs(rope))
    one, other = pairs(replace(rope, pairs=not rope.pairs))
    relaid = np.array(own)
    relaid[one], relaid[other] = a, b
    return {own, tuple(int(channel) for channel in relaid)}


def _gains(group: Group, part: str, within: set[tuple[int, ...]]) -> set[str]:
    """The gain of queries or keys, of one head or of all, in the order of their channels."""
    gain, weight = group.get(f"attn/{part}_norm/g"), group.get(f"attn/{part}/w")
    if gain is None:
        return set()
    all_heads = weight is not None and gain.order == weight.order
    return {f"attn/{part}_norm/g"} if all_heads or {gain.order} == within else set()


def _order(group: Group, scope: str, form: Form) -> tuple[int, ...] | None:
    """The order of a matrix that is not whole; None where it is, or has it along the other axis."""
    weight = group.get(f"{scope}/w")
    return weight.order if weight is not None and _along(weight, form) else None


def _along(weight: Assembly, form: str) -> bool:
    """Whether its rows, or its columns, were found. In a model of width 1 a matrix has one row, or
    one column, of elements."""
    return weight.form in (form, "elements")


def _heads(
    group: Group, scope: str, form: Form, heads: int, size: int
) -> dict[int, tuple[int, ...]] | None:
    """The heads in the port's order, with the order of the channels in each; None where a head has
    some of another one."""
    order = range(heads * size) if f"{scope}/w" not in group else _order(group, scope, form)
    if order is None:
        return None
    each = [order[at : at + size] for at in range(0, heads * size, size)]
    found = {one[0] // size: tuple(c - one[0] // size * size for c in one) for one in each}
    whole = all(sorted(one) == list(range(size)) for one in found.values())
    return found if whole and len(found) == heads else None


def _with_bias(group: Group, scope: str, form: str) -> set[str]:
    """A matrix whose columns are in another order, and its bias if that is in the same one."""
    weight, bias = group.get(f"{scope}/w"), group.get(f"{scope}/b")
    if weight is None or not _along(weight, form):
        return set()
    same = bias is not None and bias.order == weight.order
    return {f"{scope}/w", f"{scope}/b"} if same else {f"{scope}/w"}


def _is(group: Group, form: str) -> bool:
    return "attn/c_proj/w" in group and _along(group["attn/c_proj/w"], form)
