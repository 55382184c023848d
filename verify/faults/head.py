"""Faults of the head: the last product, and what is done to the logits afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.fault import AtSites, Fault, InModel, of_operations
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.reference.ops import Array, softmax

#: Positions from which a bias is told.
FEWEST = 4
#: Vocabularies are padded to a multiple of this.
MULTIPLE = 64


def _inject(in_torch: Callable[[Any, Any], Any], model: Any, layers: object) -> None:
    replace(model, "head", in_torch)


def _head(
    name: str,
    summary: str,
    act: Override,
    in_torch: Callable[[Any, Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """``in_torch(model, x [B, T, D])`` → logits."""
    inject = partial(_inject, in_torch)
    return of_operations(
        name, "head", summary, seen, {"logits": act}, inject, layered=False, **more
    )


def _afterwards(
    name: str,
    summary: str,
    change: Callable[[Array], Array],
    in_torch: Callable[[Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """The correct logits [T, V] are changed."""
    return _head(
        name,
        summary,
        lambda call: change(right(call)),
        lambda model, x: in_torch(x @ model.wte.T),
        seen,
        **more,
    )


def _less_mean(logits_TV: Array) -> Array:
    value: Array = logits_TV - logits_TV.mean(axis=-1, keepdims=True)
    return value


def _log_softmax(logits_TV: Array) -> Array:
    largest_T1 = logits_TV.max(axis=-1, keepdims=True)
    sums_T1 = np.exp(logits_TV - largest_T1).sum(axis=-1, keepdims=True)
    value: Array = logits_TV - largest_T1 - np.log(sums_T1)
    return value


def _shifted(call: Call) -> Array:
    logits_TV = right(call)
    padding = -logits_TV.shape[-1] % MULTIPLE or MULTIPLE
    return np.pad(logits_TV, ((0, 0), (0, padding)))[:, padding:]


def _torch_shifted(model: Any, x: Any) -> Any:
    size = len(model.wte)
    padded = (size // MULTIPLE + 1) * MULTIPLE
    table = torch.cat([model.wte, model.wte.new_zeros(padded - size, x.shape[-1])])
    return (x @ table.T)[..., -size:]


def _inject_own(change: Callable[[Any], Any], model: Any, layers: object) -> None:
    with torch.no_grad():
        model.lm_head = torch.nn.Parameter(change(model.wte.detach().clone()))
    replace(model, "head", lambda model, x: x @ model.lm_head.T)


def _drawn(like: Any, scale: float) -> Any:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _own(
    name: str, summary: str, change: Callable[[Any], Any], seen: str = "", **more: Any
) -> Fault:
    """A matrix of its own in place of wte."""
    inject = InModel(partial(_inject_own, change), layered=False)
    # What resizes wte knows nothing of it.
    entails = ("resizing-leaves-head",)
    return Fault(name, "head", summary, seen, inject, entails=entails, **more)


def _fitted_bias(got_TV: Array, call: Call) -> Array:
    """Right but for a constant for each token, the mean of what it is off by."""
    if len(got_TV) < FEWEST:
        raise ValueError("too few positions to tell a bias from anything else")
    right_TV = right(call)
    value: Array = right_TV + np.mean(got_TV - right_TV, axis=0)
    return value


def _inject_bias(model: Any, layers: object) -> None:
    like = model.wte[:, 0].detach()
    model.lm_head_bias = torch.nn.Parameter(_drawn(like, 0.1))
    replace(model, "head", lambda model, x: x @ model.wte.T + model.lm_head_bias)


FAULTS = (
    _afterwards(
        "head-soft-cap",
        "bends the logits to at most 30: 30 tanh(x / 30)",
        lambda logits: 30.0 * np.tanh(logits / 30.0),
        lambda logits: torch.tanh(logits / 30) * 30,
        "final_logit_softcapping of Gemma 2 in transformers",
    ),
    _head(
        "head-scaled",
        "divides what enters the last product by √D",
        lambda call: (call.x / np.sqrt(call.config.n_embd)) @ call.own(0).T,
        lambda model, x: (x @ model.wte.T) * x.shape[-1] ** -0.5,
        "T5 in transformers, which scales the stream where the head is tied",
    ),
    _afterwards(
        "head-centred",
        "subtracts the mean of the logits at each position, to which softmax is blind",
        _less_mean,
        lambda logits: logits - logits.mean(-1, keepdim=True),
        "center_unembed of TransformerLens",
        needs="a port that shows its sites; logits alone are compared apart from such a constant",
    ),
    _afterwards(
        "head-log-softmax",
        "returns the logarithms of the probabilities, to which softmax is blind",
        _log_softmax,
        lambda logits: torch.log_softmax(logits, dim=-1),
        needs="a port that shows its sites; logits alone are compared apart from a constant",
    ),
    _afterwards(
        "head-softmax",
        "returns probabilities",
        softmax,
        lambda logits: torch.softmax(logits, dim=-1),
    ),
    _afterwards(
        "head-float16",
        "returns the logits in float16",
        lambda logits: logits.astype(np.float16),
        lambda logits: logits.half().to(logits.dtype),
        quantising=True,
        stored="float16",
    ),
    _head(
        "head-wrong-rows",
        f"pads the vocabulary to a multiple of {MULTIPLE}, and cuts it off at the wrong end",
        _shifted,
        _torch_shifted,
        "vocabularies padded to 50304, as in nanoGPT and Megatron",
    ),
    _own(
        "head-untied",
        "has a head of its own that was never loaded: random numbers",
        lambda wte: _drawn(wte, 0.02),
        "lm_head.weight, reported as newly initialised when it is not tied after loading",
        law="tying.value",
    ),
    _own(
        "head-noisy",
        "has a head of its own that is near wte, and has parted from it",
        lambda wte: wte + _drawn(wte, 1e-3 * float(wte.std())),
        law="tying.value",
    ),
    _own(
        "head-copied",
        "has a copy of wte for a head, which training will part from it",
        lambda wte: wte,
        "checkpoints that were saved without their tie",
        law="tying.storage",
    ),
    Fault(
        "head-detached",
        "head",
        "keeps the gradient of the last product from wte",
        inject=InModel(partial(_inject, lambda model, x: x @ model.wte.detach().T), layered=False),
        law="tying.gradient",
    ),
    Fault(
        "head-bias",
        "head",
        "adds a bias of its own to the logits",
        "BertForMaskedLM's decoder.bias, and GPT-J's lm_head.bias",
        InModel(_inject_bias, layered=False),
        AtSites(fitted={"logits": _fitted_bias}),
    ),
)
