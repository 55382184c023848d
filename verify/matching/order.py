"""Whether rows and columns in another order than the checkpoint's are a layout or a mistake.

Bits that were found in another order are read so, or are what a converter left behind. Neurons of
an MLP may stand in any order, if its matrices have the same one. So may the channels within each
head: of values, if what reads them has the same; of queries, if the keys that they meet have it.
Rotary positions tell channels apart, and are laid out in one of two ways; whether queries and keys
are turned as they lie is seen in the scores, which are judged from both in the checkpoint's order.
Of heads that are read from one matrix the port itself has to tell. Elsewhere another order computes
something else. What is a mistake is taken to lie in the checkpoint's order, and so differs from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpt_verify.findings import layer_of
from gpt_verify.matching.assembly import Assembly, Form
from gpt_verify.reference.config import Config

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
        allowed = _neurons(group) | _asked(group, config) | _answered(group, config)
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


def _asked(group: Group, config: Config) -> set[str]:
    """Queries and keys whose channels are in one order, within each head and the head that it
    reads."""
    q = _within(group, "attn/q", "columns", config.n_head, config.head_size)
    k = _within(group, "attn/k", "columns", config.n_kv, config.head_size)
    if q is None or k is None:
        return set()
    times = config.n_head // config.n_kv
    if any(q[head] != k[head // times] for head in range(config.n_head)):
        return set()
    found = _with_bias(group, "attn/q", "columns") | _with_bias(group, "attn/k", "columns")
    for part, orders in (("q", q), ("k", k)):
        gain = group.get(f"attn/{part}_norm/g")
        weight = group.get(f"attn/{part}/w")
        if gain is not None and (
            {gain.order} == set(orders) or (weight is not None and gain.order == weight.order)
        ):
            found.add(f"attn/{part}_norm/g")
    return found


def _answered(group: Group, config: Config) -> set[str]:
    """Values whose channels are, within each head, in the order in which they are read."""
    size, n_head, n_kv = config.head_size, config.n_head, config.n_kv
    v = _within(group, "attn/v", "columns", n_kv, size)
    o = _within(group, "attn/o", "rows", n_head, size)
    if v is None or o is None or any(o[h] != v[h * n_kv // n_head] for h in range(n_head)):
        return set()
    return _with_bias(group, "attn/v", "columns") | {"attn/o/w"}


def _order(group: Group, scope: str, form: Form) -> tuple[int, ...] | None:
    """The order of a matrix that is not whole; None where it is, or has it along the other axis."""
    weight = group.get(f"{scope}/w")
    return weight.order if weight is not None and weight.form == form else None


def _within(
    group: Group, scope: str, form: Form, heads: int, size: int
) -> list[tuple[int, ...]] | None:
    """The order of the channels in each head; None where a head has some of another one."""
    order = range(heads * size) if f"{scope}/w" not in group else _order(group, scope, form)
    if order is None:
        return None
    each = [tuple(c - head * size for c in order[head * size :][:size]) for head in range(heads)]
    return each if all(sorted(one) == list(range(size)) for one in each) else None


def _with_bias(group: Group, scope: str, form: str) -> set[str]:
    """A matrix whose columns are in another order, and its bias if that is in the same one."""
    weight, bias = group.get(f"{scope}/w"), group.get(f"{scope}/b")
    if weight is None or weight.form != form:
        return set()
    same = bias is not None and bias.order == weight.order
    return {f"{scope}/w", f"{scope}/b"} if same else {f"{scope}/w"}


def _is(group: Group, form: str) -> bool:
    return "attn/c_proj/w" in group and group["attn/c_proj/w"].form == form
