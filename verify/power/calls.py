"""Correct models called in other ways. These ports show nothing but logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.later import F, torch
from gpt_verify.port import Dtype, Port
from gpt_verify.ports.callable import CallablePort


def _model(checkpoint: Checkpoint) -> Any:
    from gpt_verify.faults.model import build

    return build(checkpoint)


def called(
    call: Callable[[Any, Any], Any], name: str, dtype: Dtype | None = None
) -> Callable[[Checkpoint], Port]:
    def made(checkpoint: Checkpoint) -> Port:
        model = _model(checkpoint)

        def logits(tokens: Any) -> Any:
            with torch.no_grad():
                return call(model, torch.from_numpy(np.asarray(tokens, np.int64)))

        return CallablePort(logits, name, dtype)

    return made


def plain(model: Any, ids: Any) -> Any:
    return model(ids)["logits"]


def decoded(model: Any, ids: Any) -> Any:
    """Token by token, with a cache; the prompt is its first half."""
    start = max(1, ids.shape[1] // 2)
    past, parts = None, []
    for first, last in [(0, start), *((i, i + 1) for i in range(start, ids.shape[1]))]:
        output = model(ids[:, first:last], past_key_values=past, use_cache=True)
        past = output["past_key_values"]
        parts.append(output["logits"])
    return torch.cat(parts, dim=1)


def prefix_cached(model: Any, ids: Any) -> Any:
    """What an earlier call began with is not computed again: its keys, values and logits are
    kept."""
    kept_ids: Any
    kept: Any
    kept_ids, kept = getattr(model, "kept", (ids[:, :0], None))
    common = 0
    if kept is not None and len(kept_ids) == len(ids):
        shorter = min(kept_ids.shape[1], ids.shape[1] - 1)
        equal = (kept_ids[:, :shorter] == ids[:, :shorter]).all(0)
        common = int(equal.long().cumprod(0).sum())
    past = (
        [tuple(x[:, :, :common] for x in pair) for pair in kept["past_key_values"]]
        if common
        else None
    )
    output = model(ids[:, common:], past_key_values=past, use_cache=True)
    if common:
        output["logits"] = torch.cat([kept["logits"][:, :common], output["logits"]], dim=1)
    model.kept = ids, output
    return output["logits"]


def among_others(model: Any, ids: Any) -> Any:
    """The sequences are run in a batch with others."""
    others = (ids.flip(0) + 1) % model.config.n_vocab
    return plain(model, torch.cat([others, ids, others]))[len(ids) : 2 * len(ids)]


def row_by_row(model: Any, ids: Any) -> Any:
    return torch.cat([plain(model, row[None]) for row in ids])


def padded_left(model: Any, ids: Any) -> Any:
    """The sequence is run with padding before it, where there is room."""
    pad = min(3, model.config.n_ctx - ids.shape[1])
    if pad <= 0:
        return plain(model, ids)
    mask = F.pad(torch.ones_like(ids), (pad, 0))
    return model(F.pad(ids, (pad, 0)), attention_mask=mask)["logits"][:, pad:]


def functional(model: Any, ids: Any) -> Any:
    """The parameters are an argument, not a state."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return torch.func.functional_call(model, parameters, (ids,))["logits"]


def in_float64(model: Any, ids: Any) -> Any:
    return plain(model.double(), ids)


def compiled(checkpoint: Checkpoint) -> Port:
    """torch.compile with the default backend, once for all lengths."""
    model = _model(checkpoint)
    compiled = torch.compile(lambda ids: model(ids)["logits"], dynamic=True)

    def logits(tokens: Any) -> Any:
        with torch.no_grad():
            return compiled(torch.from_numpy(np.asarray(tokens, np.int64)))

    return CallablePort(logits, "compiled", None)
