"""Faults of the two ends of a family's model: how tokens are embedded, and the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.numerics.precision import BFLOAT16
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, embed, soft_cap, unembed


def _embed(
    call: Call, scale: Callable[[float], float] = lambda s: s, offset: int | None = None
) -> Array:
    """The rows of the tokens and of the positions, scaled or counted otherwise."""
    config, keys = call.config, call.config.keys
    tables = [call.lookup(name) for name in call.site.weights]
    wpe_PD = tables[1] if keys.table else None
    by = None if config.embed_scale is None else scale(config.embed_scale)
    first = keys.table_offset if offset is None else offset
    rows = call.tokens_T.reshape(call.rows, -1)
    return np.concatenate([embed(row, tables[0], wpe_PD, call.dtype, first, by) for row in rows])


def _rounded(scale: float) -> float:
    return float(BFLOAT16.round(np.array(scale)))


def _scale(change: Callable[[float], float], decoder: Decoder, layers: Sequence[int]) -> None:
    """transformers keeps it beside the table, as a tensor that follows the model's format."""
    table = decoder.at("wte")
    table.embed_scale.fill_(change(float(table.embed_scale)))


def _torch_rounded(scale: float) -> float:
    return float(torch.tensor(scale).to(torch.bfloat16))


def _offset(decoder: Decoder, layers: Sequence[int]) -> None:
    decoder.at("wpe").offset = 0


def _drop_norm(decoder: Decoder, layers: Sequence[int]) -> None:
    replace(decoder.at("ln_embed"), "forward", lambda _, x: x)


def _logits(call: Call, table: str | None = None, bias: bool = True) -> Array:
    """The logits by another table, or without their bias."""
    keys = call.config.keys
    made = unembed(call.x, call.w(table or call.config.head))
    if keys.bias_head and bias:
        made = made + call.w("lm_head/b")
    return made if keys.cap_logits is None else soft_cap(made, keys.cap_logits)


def _tie(decoder: Decoder, layers: Sequence[int]) -> None:
    wte = decoder.at("wte")
    head = decoder.at("lm_head")
    replace(head, "forward", lambda own, x: torch.nn.functional.linear(x, wte.weight, own.bias))


def _drop_bias(decoder: Decoder, layers: Sequence[int]) -> None:
    head = decoder.at("lm_head")
    replace(head, "forward", lambda own, x: torch.nn.functional.linear(x, own.weight))


def _scaled(config: Config) -> bool:
    return config.keys.scale_embed


def _fault(
    name: str,
    summary: str,
    kind: str,
    act: Override,
    module: Callable[[Decoder, Sequence[int]], None],
    of: Callable[[Config], bool],
    seen: str,
    **more: Any,
) -> Fault:
    family, how = name.partition("-")[0], InTransformers(module=module, layered=False)
    predict = AtSites({kind: act})
    return Fault(name, family, summary, seen, predict=predict, in_family=how, of=of, **more)


FAULTS = (
    _fault(
        "embeddings-not-scaled",
        "does not multiply the embeddings by √D",
        "embed",
        partial(_embed, scale=lambda scale: 1.0),
        partial(_scale, lambda scale: 1.0),
        _scaled,
        "Gemma's weights in code for Llama",
    ),
    _fault(
        "embeddings-scale-bfloat16",
        "multiplies the embeddings by √D as it is in bfloat16",
        "embed",
        partial(_embed, scale=_rounded),
        partial(_scale, _torch_rounded),
        _scaled,
        "a scale that is kept in the format of the weights",
        needs="a width whose root bfloat16 does not have",
    ),
    _fault(
        "embeddings-scale-squared",
        "multiplies the embeddings by D",
        "embed",
        partial(_embed, scale=lambda scale: scale**2),
        partial(_scale, lambda scale: scale * scale),
        _scaled,
        "a table that was scaled when it was converted, and is scaled again",
    ),
    _fault(
        "embeddings-offset-0",
        "takes the first row of the table of positions for position 0, where it is another one",
        "embed",
        partial(_embed, offset=0),
        _offset,
        lambda config: config.keys.table_offset > 0,
        "OPT's weights in code for GPT-2",
    ),
    Fault(
        "embeddings-norm-missing",
        "embeddings",
        "leaves out the norm after the embeddings",
        "BLOOM's weights in code for a model without word_embeddings_layernorm",
        predict=AtSites({"ln_embed": lambda call: call.x}),
        in_family=InTransformers(module=_drop_norm, layered=False),
        of=lambda config: config.keys.norm_embed,
    ),
    _fault(
        "head-tied",
        "takes the table of tokens for the head, where the model has a head of its own",
        "logits",
        partial(_logits, table="wte"),
        _tie,
        lambda config: not config.tied,
        "tie_word_embeddings whose default differs from the model's",
    ),
    _fault(
        "head-bias-missing",
        "does not add the bias of the head",
        "logits",
        partial(_logits, bias=False),
        _drop_bias,
        lambda config: config.keys.bias_head,
        "GPT-J's and Phi's weights in code whose head has no bias",
    ),
)
