"""Correct ports, written in every way that is in use. None of them may be refuted.

Each is ``gpt_verify.faults.model.Model`` with some steps written differently (``rewrites.py``), or
called differently (``calls.py``); the last ones are other people's. torch is imported when one is
built.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.port import Dtype, Port
from gpt_verify.ports import registry
from gpt_verify.power import calls, family_variants, rewrites
from gpt_verify.reference.config import Config


def _module(
    checkpoint: Checkpoint,
    *,
    name: str,
    options: dict[str, Any] | None = None,
    rewrite: rewrites.Rewrite = lambda model: None,
    dtype: Dtype | None = None,
) -> Port:
    from gpt_verify.faults.model import Options, build
    from gpt_verify.ports.torch.module import TorchModule

    model = build(checkpoint, Options(**options or {}))
    rewrite(model)
    return TorchModule(model, checkpoint, name, dtype)


def _builtin(name: str) -> Callable[[Checkpoint], Port]:
    def made(checkpoint: Checkpoint) -> Port:
        return registry.build(name, checkpoint, None, "cpu")

    return made


#: Name → what is different, in the terms of ``_module``.
_MODULES: dict[str, dict[str, Any]] = {
    "eager": {},
    "fused attention": {"options": {"fused": True}},
    "fused attention, is_causal": {"rewrite": rewrites.each("attention", attend=rewrites.causal)},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, fused attention": {"dtype": "bfloat16", "options": {"fused": True}},
    "bfloat16, softmax in float32": {
        "dtype": "bfloat16",
        "rewrite": rewrites.each("attention", softmax=rewrites.softmax_in_float32),
    },
    "float16": {"dtype": "float16", "rewrite": rewrites.each("norm", forward=rewrites.torch_norm)},
    "masked by -1e4": {"options": {"masked": -1e4}},
    "masked by -inf": {"options": {"masked": -math.inf}},
    "mask added to the scores": {"rewrite": rewrites.each("attention", mask=rewrites.mask_added)},
    "padded vocabulary": {"options": {"padded_vocabulary": 27}},
    "split q, k, v": {"rewrite": rewrites.split_qkv},
    "k and v in one matrix": {"rewrite": rewrites.fused_kv},
    "v, k, q": {"rewrite": rewrites.backwards},
    "a list of heads": {"rewrite": rewrites.list_of_heads},
    "a matrix a head": {"rewrite": rewrites.fused_heads},
    "nn.Linear": {"rewrite": rewrites.linears},
    "addmm": {"rewrite": rewrites.each("linear", forward=rewrites.addmm)},
    "sums in another order": {"rewrite": rewrites.each("linear", forward=rewrites.in_two_halves)},
    "F.layer_norm": {"rewrite": rewrites.each("norm", forward=rewrites.torch_norm)},
    "norm divided by the deviation": {"rewrite": rewrites.each("norm", normalise=rewrites.divided)},
    "F.gelu, tanh": {"rewrite": rewrites.each("mlp", act=rewrites.torch_gelu)},
    "tanh by exp": {"rewrite": rewrites.each("mlp", act=rewrites.tanh_by_exp)},
    "GELU by sigmoid": {"rewrite": rewrites.each("mlp", act=rewrites.gelu_by_sigmoid)},
    "residual in place": {"rewrite": rewrites.each("block", wire=rewrites.in_place)},
    "blocks computed again": {"rewrite": rewrites.each("block", wire=rewrites.computed_again)},
    "query scaled first": {"rewrite": rewrites.each("attention", scores=rewrites.query_scaled)},
    "einsum": {
        "rewrite": rewrites.each(
            "attention", scores=rewrites.scores_by_einsum, mix=rewrites.mix_by_einsum
        )
    },
    "head by head": {"rewrite": rewrites.each("attention", attend=rewrites.head_by_head)},
    "softmax by hand": {"rewrite": rewrites.each("attention", softmax=rewrites.softmax_by_hand)},
    "one-hot lookup": {"rewrite": rewrites.whole(embed=rewrites.one_hot)},
    "indexed lookup": {"rewrite": rewrites.whole(embed=rewrites.indexed)},
    "F.linear head": {"rewrite": rewrites.whole(head=rewrites.head_as_linear)},
    "generates with a cache": {"rewrite": rewrites.whole(generate=rewrites.generate_with_cache)},
}
_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "logits only": calls.plain,
    "decoded with a cache": calls.decoded,
    "a cache of prefixes": calls.prefix_cached,
    "in a batch with others": calls.among_others,
    "row by row": calls.row_by_row,
    "padded on the left": calls.padded_left,
    "functional": calls.functional,
    "logits in float64": calls.in_float64,
}
_BUILTIN = ("huggingface-eager", "huggingface-sdpa")

#: Every correct variant of GPT-2, by name.
VARIANTS: dict[str, Callable[[Checkpoint], Port]] = {
    **{name: partial(_module, name=name, **how) for name, how in _MODULES.items()},
    **{name: calls.called(call, name) for name, call in _CALLS.items()},
    "torch.compile": calls.compiled,
    **{name: _builtin(name) for name in _BUILTIN},
}


def variants_of(config: Config) -> dict[str, Callable[[Checkpoint], Port]]:
    """Those of such a model: of a family, transformers' own, in every attention that it has, with
    steps written otherwise, and called otherwise."""
    return VARIANTS if config.own is None else family_variants.every(config)


def unavailable(name: str) -> str | None:
    """Why a variant cannot be built here, or None."""
    if (builtin := name.partition(",")[0]) in _BUILTIN:
        return next((p.missing for p in registry.builtin_ports() if p.name == builtin), None)
    if name == "torch.compile":
        return _no_compiler()
    return None


def _no_compiler() -> str | None:
    """torch.compile makes C++ of a model, with this compiler (``torch/_inductor/config.py``)."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else f"no C++ compiler: there is no {compiler}"
