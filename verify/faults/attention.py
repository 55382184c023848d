"""Faults of attention: the scale, the softmax and the sum over the values.

Masks: ``attention_mask.py``. Turned queries, penalties for distance: ``attention_positions.py``.
How q, k, v and the heads lie side by side: ``attention_heads.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InModel, InTransformers, of_operations
from gpt_verify.faults.inject import replace, wrap
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, Precision
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, attention_mix, causal_softmax
from gpt_verify.sites import Site

Steps = Mapping[str, Callable[..., Any]]


def inject_steps(steps: Steps, model: Any, layers: Sequence[int]) -> None:
    """Replace methods of ``model.Attention``: name → ``function(attention, …)``."""
    for block in model.blocks(layers):
        for method, function in steps.items():
            replace(block.attn, method, function)


def attention(
    name: str,
    summary: str,
    operations: Mapping[str, Override],
    steps: Steps,
    seen: str = "",
    **more: Any,
) -> Fault:
    """A fault by the sites of attention that it changes, and the methods."""
    operations = {f"attn.{kind}": act for kind, act in operations.items()}
    inject = partial(inject_steps, steps)
    return of_operations(name, "attention", summary, seen, operations, inject, **more)


# The scale


#: Configuration and layer → what scores are multiplied with.
Factor = Callable[[Config, int], float]


def right_scale(config: Config) -> float:
    return config.keys.scale or config.head_size**-0.5


def _scaled(factor: Factor, call: Call) -> Array:
    q_HTK, k_HSK = call.part("q"), call.part("k")
    value: Array = np.einsum("htk,hsk->hts", q_HTK, k_HSK) * factor(call.config, call.layer)
    return value


def _scale(
    name: str,
    summary: str,
    factor: Factor,
    in_torch: Callable[[Any, Any], float],
    seen: str = "",
    **more: Any,
) -> Fault:
    operations = {"scores": partial(_scaled, factor)}
    more["in_family"] = InTransformers(module=partial(_scale_in_family, factor))
    more["of"] = partial(_differs, factor)
    return attention(name, summary, operations, {"scale": in_torch}, seen, **more)


def _of_families(
    name: str, summary: str, factor: Factor, of: Callable[[Config], bool], seen: str
) -> Fault:
    """One that is right in GPT-2, of models that are so."""
    return Fault(
        name,
        "attention",
        summary,
        seen,
        predict=AtSites({"attn.scores": partial(_scaled, factor)}),
        in_family=InTransformers(module=partial(_scale_in_family, factor)),
        of=lambda config: of(config) and _differs(factor, config),
    )


def _differs(factor: Factor, config: Config) -> bool:
    """Of GPT-2 each is tried, whatever the sizes."""
    own = right_scale(config)
    layers = range(config.n_layer)
    return config.own is None or not all(math.isclose(factor(config, i), own) for i in layers)


def _scale_in_family(factor: Factor, decoder: Decoder, layers: Sequence[int]) -> None:
    """transformers keeps the scale in attention, or divides by one, or has none."""
    for layer in layers:
        attn, scale = decoder.attention(layer), factor(decoder.config, layer)
        kept = [name for name in ("scaling", "inv_norm_factor") if hasattr(attn, name)]
        if kept:
            setattr(attn, kept[0], scale)
        elif hasattr(attn, "scale_attn"):
            attn.scale_attn = 1 / scale
        else:
            wrap(attn, "_attn", partial(_scaled_query, scale=scale))


def _scaled_query(attn: Any, act: Any, query: Any, *more: Any, scale: float) -> Any:
    return act(query * scale, *more)


def _inject_by_layer(model: Any, layers: Sequence[int]) -> None:
    for layer in layers:
        attn = model.h[layer].attn
        replace(attn, "scale", partial(_torch_layer_scale, number=layer + 1))


def _torch_layer_scale(attn: Any, q: Any, number: int) -> float:
    return 1.0 / (math.sqrt(q.shape[-1]) * number)


def _by_layer(config: Config, layer: int) -> float:
    return right_scale(config) / (layer + 1)


def _after_the_first(config: Config, site: Site) -> bool:
    return site.layer != 0


# The softmax


def _normed(exponentials_HTS: Array, axis: int = -1, more: Array | float = 0.0) -> Array:
    value: Array = exponentials_HTS / (exponentials_HTS.sum(axis=axis, keepdims=True) + more)
    return value


def _over_targets(call: Call) -> Array:
    below_TS = np.tri(*call.x.shape[-2:], dtype=np.bool_)
    masked_HTS = np.where(below_TS, call.x, -np.inf)
    return _normed(np.exp(masked_HTS - masked_HTS.max(axis=-2, keepdims=True)), axis=-2)


def _over_heads(call: Call) -> Array:
    """Where all heads are masked all are equal, and share what is left."""
    below_TS = np.tri(*call.x.shape[-2:], dtype=np.bool_)
    pattern_HTS = _normed(np.exp(call.x - call.x.max(axis=0)), axis=0)
    return np.where(below_TS, pattern_HTS, 1.0 / len(call.x))


def _plus_one(call: Call) -> Array:
    below_TS = np.tri(*call.x.shape[-2:], dtype=np.bool_)
    largest_HT1 = np.max(np.where(below_TS, call.x, 0.0), axis=-1, keepdims=True)
    exponentials_HTS = np.where(below_TS, np.exp(np.minimum(call.x - largest_HT1, 0.0)), 0.0)
    return _normed(exponentials_HTS, more=np.exp(-largest_HT1))


def _torch_plus_one(attn: Any, scores: Any) -> Any:
    beside = torch.zeros_like(scores[..., :1])
    return torch.softmax(torch.cat([scores, beside], dim=-1), dim=-1)[..., :-1]


def _torch_base_2(attn: Any, scores: Any) -> Any:
    powers = torch.exp2(scores - scores.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def _narrow(name: str, precision: Precision, seen: str) -> Fault:
    def scores(call: Call) -> Array:
        return precision.round(right(call))

    def pattern(call: Call) -> Array:
        return precision.round(causal_softmax(precision.round(call.x).astype(call.dtype)))

    def in_torch(attn: Any, scores: Any) -> Any:
        narrow = getattr(torch, precision.name)
        return torch.softmax(scores.to(narrow), dim=-1).to(scores.dtype)

    return attention(
        name,
        f"takes the softmax in {precision.name}",
        {"scores": scores, "pattern": pattern},
        {"softmax": in_torch},
        seen,
        quantising=True,
        stored=precision.name,
    )


# The sum over the values


def _transposed_mix(call: Call) -> Array:
    return attention_mix(call.x.transpose(0, 2, 1), call.heads()[2])


def _torch_dropout(attn: Any, scores: Any) -> Any:
    return torch.nn.functional.dropout(torch.softmax(scores, dim=-1), 0.1, training=True)


# The bias of the keys


def _no_key_bias(call: Call) -> Array:
    bias_C = call.own(1).copy()
    width = call.config.n_embd
    bias_C[width : 2 * width] = 0
    value: Array = call.x @ call.own(0) + bias_C
    return value


def _torch_no_key_bias(linear: Any, x: Any) -> Any:
    q, k, v = linear.bias.chunk(3)
    bias = torch.cat([q, torch.zeros_like(k), v])
    return torch.nn.functional.linear(x, linear.weight.T, bias)


def _drop_key_bias(model: Any, layers: Sequence[int]) -> None:
    for block in model.blocks(layers):
        replace(block.attn.c_attn, "forward", _torch_no_key_bias)


FAULTS = (
    _scale(
        "attention-scale-missing",
        "does not divide the scores by the root of a head's size",
        lambda config, layer: 1.0,
        lambda attn, q: 1.0,
        "scale_attn_weights=False of transformers' GPT2Config",
    ),
    _scale(
        "attention-scale-by-width",
        "divides the scores by √D, the root of the model's width, not of a head's",
        lambda config, layer: config.n_embd**-0.5,
        lambda attn, q: 1.0 / math.sqrt(attn.n_head * q.shape[-1]),
    ),
    _scale(
        "attention-scale-by-heads",
        "divides the scores by the root of the number of heads",
        lambda config, layer: config.n_head**-0.5,
        lambda attn, q: 1.0 / math.sqrt(attn.n_head),
    ),
    _scale(
        "attention-scale-twice",
        "scales the scores twice: divides them by a head's size instead of by its root",
        lambda config, layer: right_scale(config) ** 2,
        lambda attn, q: 1.0 / q.shape[-1],
    ),
    _scale(
        "attention-scale-inverted",
        "multiplies the scores by the root of a head's size",
        lambda config, layer: 1 / right_scale(config),
        lambda attn, q: math.sqrt(q.shape[-1]),
    ),
    Fault(
        "attention-scale-by-layer",
        "attention",
        "divides the scores by the number of the layer as well",
        "scale_attn_by_inverse_layer_idx of transformers' GPT2Config",
        InModel(_inject_by_layer),
        AtSites({"attn.scores": partial(_scaled, _by_layer)}, where=_after_the_first),
        of=partial(_differs, _by_layer),
        in_family=InTransformers(module=partial(_scale_in_family, _by_layer)),
        needs="more than one layer: the first is divided by 1",
    ),
    _of_families(
        "attention-scale-by-share",
        "divides the scores by √(D/H), where a head has another size",
        lambda config, layer: (config.n_embd / config.n_head) ** -0.5,
        lambda config: config.head_size * config.n_head != config.n_embd,
        "code that is older than head_dim",
    ),
    _of_families(
        "attention-scale-by-size",
        "divides the scores by the root of a head's size, where the model has another scale",
        lambda config, layer: config.head_size**-0.5,
        lambda config: config.keys.scale is not None,
        "query_pre_attn_scalar of Gemma 2 that is not read; scale_attn of GPT-Neo's ports",
    ),
    attention(
        "attention-softmax-over-targets",
        "takes the softmax over the targets, not over the sources",
        {"pattern": _over_targets},
        {"softmax": lambda attn, scores: torch.softmax(scores, dim=-2)},
    ),
    attention(
        "attention-softmax-over-heads",
        "takes the softmax over the heads",
        {"pattern": _over_heads},
        {"softmax": lambda attn, scores: torch.softmax(scores, dim=1)},
        "softmax over dim=1, the axis that a model without heads has its sources in",
    ),
    attention(
        "attention-softmax-plus-one",
        "adds 1 to the denominator of the softmax, so that a head may look at nothing",
        {"pattern": _plus_one},
        {"softmax": _torch_plus_one},
        "add_zero_attn of torch.nn.MultiheadAttention",
    ),
    attention(
        "attention-softmax-base-2",
        "takes the softmax to base 2 (exp2), not to base e",
        {"pattern": lambda call: causal_softmax(call.x * math.log(2.0))},
        {"softmax": _torch_base_2},
        "a kernel on exp2 that leaves out the factor log2(e)",
    ),
    _narrow("attention-softmax-float16", FLOAT16, ""),
    _narrow("attention-softmax-bfloat16", BFLOAT16, ""),
    attention(
        "attention-pattern-transposed",
        "sends information from targets to sources",
        {"mix": _transposed_mix},
        {"mix": lambda attn, pattern, v: pattern.transpose(-1, -2) @ v},
    ),
    of_operations(
        "attention-key-bias-dropped",
        "attention",
        "leaves out the bias of the keys, to which softmax is blind: qkv differs, no logit does",
        "qkv_bias of BEiT, whose keys have none",
        {"attn.qkv": _no_key_bias},
        _drop_key_bias,
        needs="a bias of the keys that is not 0; seen where qkv is shown, never in logits",
    ),
    Fault(
        "attention-dropout",
        "attention",
        "drops one weight of attention in ten by chance, as in training",
        "a model that was not put into evaluation mode",
        InModel(partial(inject_steps, {"softmax": _torch_dropout})),
        law="determinism",
    ),
)
