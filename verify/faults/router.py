"""Faults of routers: which experts a token takes, and what each counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from functools import partial
from typing import Any

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import F, torch
from gpt_verify.graph.call import Call
from gpt_verify.numerics.precision import BFLOAT16
from gpt_verify.reference.architecture import Experts
from gpt_verify.reference.config import Config
from gpt_verify.reference.experts import chosen, routing
from gpt_verify.reference.ops import Array, linear

#: Logits [T, E], and how the model takes experts → the weights of all, [T, E].
Weigh = Callable[[Array, Experts], Array]
#: Logits [N, E], k, and whether weights sum to 1 → the weights of k experts, and which they are.
Take = Callable[[Any, int, bool], tuple[Any, Any]]


def _experts(config: Config) -> Experts:
    assert config.keys.experts is not None, "a model of experts"
    return config.keys.experts


def _weights(weigh: Weigh, call: Call) -> Array:
    return weigh(call.x, _experts(call.config))


def _taken(logits: Any, count: int, renormalised: bool) -> tuple[Any, Any]:
    """As it should be."""
    if not renormalised:
        values, places = logits.softmax(-1).topk(count, dim=-1)
        return values, places
    values, places = logits.topk(count, dim=-1)
    return values.softmax(-1), places


def _routers(decoder: Decoder, layers: Sequence[int]) -> list[Any]:
    """transformers has one a layer, whose class is named so."""
    found = [m for m in decoder.model.modules() if type(m).__name__.endswith("TopKRouter")]
    return [found[layer] for layer in layers]


def _inject(take: Take, decoder: Decoder, layers: Sequence[int]) -> None:
    kind = _experts(decoder.config)

    def forward(router: Any, x: Any) -> Any:
        bias = getattr(router, "bias", None)
        logits = F.linear(x.reshape(-1, x.shape[-1]), router.weight, bias)
        weights, places = take(logits, kind.chosen, kind.renormalised)
        return logits, weights, places

    for router in _routers(decoder, layers):
        replace(router, "forward", forward)


def _some(config: Config) -> bool:
    return config.keys.experts is not None


def _fault(
    name: str,
    summary: str,
    weigh: Weigh,
    take: Take,
    of: Callable[[Experts], bool] = lambda kind: True,
    seen: str = "",
    **more: Any,
) -> Fault:
    predict = AtSites({"mlp.routing": partial(_weights, weigh)}, **more)
    how = InTransformers(module=partial(_inject, take))
    able = partial(_such, of)
    return Fault(name, "router", summary, seen, predict=predict, in_family=how, of=able)


def _such(of: Callable[[Experts], bool], config: Config) -> bool:
    return _some(config) and of(_experts(config))


def _all_alike(logits_TE: Array, kind: Experts) -> Array:
    return chosen(logits_TE, kind.chosen) / kind.chosen


def _more(by: int, logits_TE: Array, kind: Experts) -> Array:
    return routing(logits_TE, changed(kind, chosen=kind.chosen + by))


def _take_more(by: int, logits: Any, count: int, renormalised: bool) -> tuple[Any, Any]:
    return _taken(logits, count + by, renormalised)


def _reversed(logits_TE: Array, kind: Experts) -> Array:
    weights_TE: Array = routing(logits_TE, kind)[:, ::-1]
    return weights_TE


def _take_reversed(logits: Any, count: int, renormalised: bool) -> tuple[Any, Any]:
    weights, places = _taken(logits, count, renormalised)
    return weights, logits.shape[-1] - 1 - places


def _smallest(logits_TE: Array, kind: Experts) -> Array:
    """Those with the smallest logits, by the weights of those with the largest."""
    return routing(-logits_TE, kind)


def _narrow(logits_TE: Array, kind: Experts) -> Array:
    return routing(BFLOAT16.round(logits_TE).astype(logits_TE.dtype), kind)


def _drop_bias(decoder: Decoder, layers: Sequence[int]) -> None:
    kind = _experts(decoder.config)

    def forward(router: Any, x: Any) -> Any:
        logits = F.linear(x.reshape(-1, x.shape[-1]), router.weight)
        return logits, *_taken(logits, kind.chosen, kind.renormalised)

    for router in _routers(decoder, layers):
        replace(router, "forward", forward)


FAULTS = (
    _fault(
        "router-not-renormalised",
        "weighs the chosen experts by a softmax over all of them",
        lambda logits, kind: routing(logits, changed(kind, renormalised=False)),
        lambda logits, count, renormalised: _taken(logits, count, False),
        lambda kind: kind.renormalised and kind.chosen < kind.count,
        "norm_topk_prob that is not read; softmax before top k",
    ),
    _fault(
        "router-renormalised",
        "divides the weights of the chosen experts by their sum",
        lambda logits, kind: routing(logits, changed(kind, renormalised=True)),
        lambda logits, count, renormalised: _taken(logits, count, True),
        lambda kind: not kind.renormalised and kind.chosen < kind.count,
        "norm_topk_prob that is not read; Mixtral's router in code for Qwen",
    ),
    _fault(
        "router-uniform",
        "weighs the chosen experts alike",
        _all_alike,
        lambda logits, count, _: (
            torch.full_like(logits[:, :count], 1 / count),
            logits.topk(count, dim=-1).indices,
        ),
        lambda kind: not kind.renormalised or kind.chosen > 1,
    ),
    _fault(
        "router-one-more",
        "takes one expert more for each token",
        partial(_more, 1),
        partial(_take_more, 1),
        lambda kind: kind.chosen < kind.count,
        "num_experts_per_tok that is not read",
    ),
    _fault(
        "router-one-less",
        "takes one expert less for each token",
        partial(_more, -1),
        partial(_take_more, -1),
        lambda kind: kind.chosen > 1,
        "num_experts_per_tok that is not read",
    ),
    _fault(
        "router-permuted",
        "counts the experts from the last one",
        _reversed,
        _take_reversed,
        lambda kind: kind.count > 1,
        "experts that are stacked in another order",
    ),
    _fault(
        "router-smallest",
        "takes the experts with the smallest logits",
        _smallest,
        lambda logits, count, renormalised: _taken(-logits, count, renormalised),
        lambda kind: kind.count > 1,
    ),
    _fault(
        "router-bfloat16",
        "rounds the logits of the router to bfloat16",
        _narrow,
        lambda logits, count, renormalised: _taken(
            logits.to(torch.bfloat16).to(logits.dtype), count, renormalised
        ),
        seen="a router that is not kept in float32",
        quantising=True,
    ),
    Fault(
        "router-bias-missing",
        "router",
        "does not add the bias of the router",
        predict=AtSites({"mlp.router": lambda call: linear(call.x, call.own(0))}),
        in_family=InTransformers(module=_drop_bias),
        of=lambda config: _some(config) and _experts(config).bias,
    ),
)
