"""Faults of the linear maps: biases, a square matrix read the wrong way round, layers in another
order. Where c_attn's output is cut: ``attention_heads.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import (
    AtSites,
    Fault,
    InModel,
    InTransformers,
    OfTensors,
    Stored,
    of_operations,
)
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array
from gpt_verify.sites import Site, sites

#: Site → where the model keeps the map that makes it.
_MAPS = {
    "attn.qkv": ("attn", "c_attn"),
    "attn.out": ("attn", "c_proj"),
    "mlp.pre": ("mlp", "c_fc"),
    "mlp.out": ("mlp", "c_proj"),
}
#: The same in a family, by the scope of the tensors.
_IN_FAMILY = {
    **{f"attn.{part}": (f"attn/{part}",) for part in "qkv"},
    "attn.out": ("attn/o",),
    "mlp.pre": ("mlp/c_fc",),
    "mlp.gate": ("mlp/gate",),
    "mlp.up": ("mlp/up",),
    "mlp.out": ("mlp/c_proj", "mlp/down"),
}
#: Tensors of a block, without their layer.
_KINDS = (
    *(f"{norm}/{leaf}" for norm in ("ln_1", "ln_2") for leaf in "gb"),
    *(f"{part}/{name}/{leaf}" for part, name in _MAPS.values() for leaf in "wb"),
)


def _inject(
    changes: Mapping[str, Callable[[Any, Any], Any]], model: Any, layers: Sequence[int]
) -> None:
    for block in model.blocks(layers):
        for kind, forward in changes.items():
            part, name = _MAPS[kind]
            replace(getattr(getattr(block, part), name), "forward", forward)


def _linear(
    name: str,
    summary: str,
    operations: Mapping[str, Override],
    in_torch: Callable[[Any, Any], Any] | Mapping[str, Callable[[Any, Any], Any]],
    seen: str = "",
    **more: Any,
) -> Fault:
    """``in_torch(linear, x)``, one for all sites or one for each."""
    changes = in_torch if isinstance(in_torch, Mapping) else dict.fromkeys(operations, in_torch)
    return of_operations(
        name, "linear", summary, seen, operations, partial(_inject, changes), **more
    )


def _product(call: Call) -> Array:
    value: Array = call.x @ call.own(0)
    return value


def _torch_product(linear: Any, x: Any) -> Any:
    return torch.matmul(x, linear.weight)


def _without_part(part: int, call: Call) -> Array:
    biases = np.split(call.own(1), 3)
    biases[part] = np.zeros_like(biases[part])
    value: Array = _product(call) + np.concatenate(biases)
    return value


def _torch_without_part(linear: Any, x: Any, part: int) -> Any:
    width = linear.bias.shape[0] // 3
    bias = linear.bias.clone()
    bias[part * width : (part + 1) * width] = 0
    return torch.nn.functional.linear(x, linear.weight.T, bias)


def _missing(name: str, summary: str, *kinds: str, seen: str = "") -> Fault:
    operations = dict.fromkeys((*kinds, *_of_families(kinds)), _product)
    inject = InModel(partial(_inject, dict.fromkeys(kinds, _torch_product)))
    return Fault(
        name,
        "linear",
        summary,
        seen,
        inject,
        AtSites(operations, where=_has_bias),
        needs="a bias that is not 0",
        of=partial(_biased, kinds),
        in_family=InTransformers(module=partial(_drop_biases, kinds)),
    )


def _has_bias(config: Config, site: Site) -> bool:
    return len(site.weights) > 1


def _of_families(kinds: Sequence[str]) -> list[str]:
    """What is one site in GPT-2 may be several."""
    found = ["attn.q", "attn.k", "attn.v"] if "attn.qkv" in kinds else []
    return [*found, "mlp.gate", "mlp.up"] if "mlp.pre" in kinds else found


def _biased(kinds: Sequence[str], config: Config) -> bool:
    """These products have a bias; of all kinds, more than one: else it is that one's fault."""
    biased = {s.kind for s in sites(config).values() if s.is_product and _has_bias(config, s)}
    concerned = [kind for kind in kinds if biased & {kind, *_of_families((kind,))}]
    return len(concerned) >= min(len(kinds), 2)


def _drop_biases(kinds: Sequence[str], decoder: Decoder, layers: Sequence[int]) -> None:
    scopes = [s for kind in (*kinds, *_of_families(kinds)) for s in _IN_FAMILY.get(kind, ())]
    for linear in decoder.each(scopes, layers):
        replace(linear, "forward", lambda own, x: torch.nn.functional.linear(x, own.weight))


def _missing_part(name: str, summary: str, part: int) -> Fault:
    return _linear(
        name,
        summary,
        {"attn.qkv": partial(_without_part, part)},
        partial(_torch_without_part, part=part),
        needs="a bias that is not 0",
    )


def _bias_twice(call: Call) -> Array:
    return _product(call) + 2 * call.own(1)


def _transposed(call: Call) -> Array:
    value: Array = np.einsum("ti,oi->to", call.x, call.own(0)) + call.own(1)
    return value


def _string_sorted(t: Stored) -> Array:
    """The tensor whose number is in this place when 0, 1, 10, 11, 2 … is the order."""
    layer, _, rest = t.name.removeprefix("h").partition("/")
    return t.lookup(f"h{sorted(map(str, range(t.config.n_layer)))[int(layer)]}/{rest}")


def _inject_string_sorted(model: Any, layers: Sequence[int]) -> None:
    numbers = sorted(range(len(model.h)), key=str)
    model.h = torch.nn.ModuleList(model.h[number] for number in numbers)


FAULTS = (
    _linear(
        "linear-transposed",
        "multiplies by c_proj of the attention the wrong way round: it is square, and fits",
        {"attn.out": _transposed},
        lambda linear, x: x @ linear.weight.T + linear.bias,
        "nn.Linear, which keeps [out, in], in place of GPT-2's [in, out]",
    ),
    _missing(
        "linear-bias-missing",
        "adds no bias in its linear maps",
        *_MAPS,
        seen="bias=False, an option of nanoGPT",
    ),
    _missing("linear-qkv-bias-missing", "adds no bias to queries, keys and values", "attn.qkv"),
    _missing_part("linear-query-bias-missing", "adds no bias to the queries", 0),
    _missing_part("linear-value-bias-missing", "adds no bias to the values", 2),
    _missing("linear-projection-bias-missing", "adds no bias after attention", "attn.out"),
    _missing("linear-fc-bias-missing", "adds no bias before the activation", "mlp.pre"),
    _missing("linear-mlp-projection-bias-missing", "adds no bias after the MLP", "mlp.out"),
    _linear(
        "linear-bias-twice",
        "adds the biases of the two projections twice",
        dict.fromkeys(("attn.out", "mlp.out"), _bias_twice),
        lambda linear, x: x @ linear.weight + linear.bias + linear.bias,
        "tensor parallelism that adds the bias on every rank before it sums over them",
        needs="a bias that is not 0",
    ),
    Fault(
        "linear-layers-string-sorted",
        "linear",
        "sorts the layers by their names as strings: h.10 comes before h.2",
        "parts of a checkpoint of 100 parts and more (deepspeedai/DeepSpeed#1381)",
        InModel(_inject_string_sorted, layered=False),
        OfTensors(_string_sorted, _KINDS),
        needs="more than ten layers",
    ),
)
