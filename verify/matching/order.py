"""Whether rows and columns in another order than the checkpoint's are a layout or a mistake.

Bits that were found in another order are read so, or are what a converter left behind. Neurons of
an MLP may stand in any order, if its two matrices have the same one; of heads the port itself has
to tell. Elsewhere another order computes something else. What is a mistake is taken to lie in
the checkpoint's order, and so differs from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpt_verify.findings import layer_of
from gpt_verify.matching.assembly import Assembly

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
    assemblies: Sequence[Assembly], read: Callable[[int], Reading] = not_shown
) -> list[Assembly]:
    """The assemblies that remain when those are left out that are in the wrong order.

    Args:
        assemblies: as they were found.
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
        allowed = _neurons(group)
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
    """Those of an MLP where both of its matrices have the same order."""
    up, down = group.get("mlp/c_fc/w"), group.get("mlp/c_proj/w")
    if up is None or down is None or (up.form, down.form) != ("columns", "rows"):
        return set()
    if up.order != down.order:
        return set()
    return _with_bias(group, "mlp/c_fc", "columns") | {"mlp/c_proj/w"}


def _with_bias(group: Group, scope: str, form: str) -> set[str]:
    """A matrix whose columns are in another order, and its bias if that is in the same one."""
    weight, bias = group.get(f"{scope}/w"), group.get(f"{scope}/b")
    if weight is None or weight.form != form:
        return set()
    same = bias is not None and bias.order == weight.order
    return {f"{scope}/w", f"{scope}/b"} if same else {f"{scope}/w"}


def _is(group: Group, form: str) -> bool:
    return "attn/c_proj/w" in group and group["attn/c_proj/w"].form == form
