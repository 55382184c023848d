"""Faults of layer norm: where it stands in the block, and whose tensors it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.family_blocks import unnormed
from gpt_verify.faults.fault import AtSites, Fault, of_operations
from gpt_verify.faults.inject import replace
from gpt_verify.faults.norm import inject_norms
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, layer_norm, linear

# With the other norm's tensors


def _of(which: str, x_TD: Array, call: Call) -> Array:
    return _with(call, x_TD, call.layer, which)


def _swap(model: Any, layers: Sequence[int]) -> None:
    for block in model.blocks(layers):
        block.ln_1, block.ln_2 = block.ln_2, block.ln_1


def _share(model: Any, layers: Sequence[int]) -> None:
    def wire(block: Any, x: Any, attend: Any) -> Any:
        x = x + attend(block.ln_1(x))
        return x + block.mlp(block.ln_1(x))

    for block in model.blocks(layers):
        replace(block, "wire", wire)


# After the residual sum, as in the first transformers


def _arriving(call: Call) -> Array:
    """The stream that enters a block of a post-norm model."""
    if call.layer == 0:
        return call.stream()
    scope = f"h{call.layer - 1}/ln_2"
    return layer_norm(call.stream(), call.w(f"{scope}/g"), call.w(f"{scope}/b"))


def _leaving(call: Call) -> Array:
    """ln_f of what the last block's own norm has made."""
    scope = f"h{call.config.n_layer - 1}/ln_2"
    last_TD = layer_norm(call.x, call.w(f"{scope}/g"), call.w(f"{scope}/b"))
    return layer_norm(last_TD, call.own(0), call.own(1))


_POST: dict[str, Override] = {
    "ln_1": _arriving,
    "resid_mid": lambda call: call.at("ln_1") + call.at("attn.out"),
    "ln_2": lambda call: _of("ln_1", call.x, call),
    "resid_post": lambda call: call.at("ln_2") + call.at("mlp.out"),
    "ln_f": _leaving,
}


def _post(model: Any, layers: Sequence[int]) -> None:
    def wire(block: Any, x: Any, attend: Any) -> Any:
        x = block.ln_1(x + attend(x))
        return block.ln_2(x + block.mlp(x))

    for block in model.blocks(layers):
        replace(block, "wire", wire)


# Before each branch, as in GPT-2, where it should be after the sum


def _with(call: Call, x_TD: Array, layer: int, which: str) -> Array:
    scope = f"h{layer}/{which}"
    return layer_norm(x_TD, call.w(f"{scope}/g"), call.w(f"{scope}/b"))


def _from_normed(call: Call) -> Array:
    """The queries, keys and values of a block whose input nobody has normed: the first."""
    if call.layer > 0:
        return right(call)
    return linear(_with(call, call.x, 0, "ln_1"), call.own(0), call.own(1))


def _unnormed(call: Call) -> Array:
    """The stream that enters a block of a model that norms first."""
    return call.stream() if call.layer == 0 else call.at("resid_post", call.layer - 1)


def _next(call: Call) -> Array:
    """What the block after this one reads; the head, the stream itself."""
    if call.layer + 1 == call.config.n_layer:
        return call.x
    return _with(call, call.x, call.layer + 1, "ln_1")


_PRE: dict[str, Override] = {
    "attn.qkv": _from_normed,
    "resid_mid": lambda call: _unnormed(call) + call.at("attn.out"),
    "ln_1": lambda call: _of("ln_2", call.x, call),
    "resid_post": lambda call: call.at("resid_mid") + call.at("mlp.out"),
    "ln_2": _next,
}


def _once_more(call: Call) -> Array:
    """A last norm as it is made: gain 1, bias 0."""
    return layer_norm(right(call), np.ones(1, call.dtype), np.zeros(1, call.dtype))


def _final_twice(call: Call) -> Array:
    return layer_norm(right(call), call.own(0), call.own(1))


def _missing(
    name: str, where: str, kind: str, of: Callable[[Config], bool], seen: str = ""
) -> Fault:
    return of_operations(
        name,
        "norm",
        f"leaves out the norm {where}",
        seen,
        {kind: lambda call: call.x},
        partial(inject_norms, "forward", lambda norm, x: x, (kind,)),
        layered=kind != "ln_f",
        of=of,
        in_family=unnormed(kind),
    )


FAULTS = (
    _missing("norm-1-missing", "before attention", "ln_1", lambda config: config.norm_first),
    _missing(
        "norm-2-missing",
        "before the MLP",
        "ln_2",
        lambda config: config.norm_first and config.keys.parallel != 1,
    ),
    _missing(
        "norm-final-missing",
        "before the head",
        "ln_f",
        lambda config: config.norm_last,
        "models made after GPT-1, which has none",
    ),
    of_operations(
        "norm-final-twice",
        "norm",
        "applies the last norm twice",
        "a lens or a head that normalises hidden states which transformers has normalised already",
        {"ln_f": _final_twice},
        partial(
            inject_norms,
            "forward",
            lambda norm, x: type(norm).forward(norm, type(norm).forward(norm, x)),
            ("ln_f",),
        ),
        layered=False,
    ),
    of_operations(
        "norm-exchanged",
        "norm",
        "exchanges the tensors of ln_1 and ln_2",
        "",
        {
            "ln_1": lambda call: _of("ln_2", call.x, call),
            "ln_2": lambda call: _of("ln_1", call.x, call),
        },
        _swap,
    ),
    of_operations(
        "norm-shared",
        "norm",
        "uses ln_1 before the MLP as well",
        "",
        {"ln_2": lambda call: _of("ln_1", call.x, call)},
        _share,
    ),
    of_operations(
        "norm-post",
        "norm",
        "normalises after each residual sum instead of before each branch",
        "the block of GPT-1 and of the original transformer",
        _POST,
        _post,
        layered=False,
        of=lambda config: config.norm_first,
    ),
    Fault(
        "norm-pre",
        "norm",
        "normalises before each branch instead of after each residual sum",
        "the block of GPT-2, in a port of GPT",
        predict=AtSites(_PRE),
        of=lambda config: not config.norm_first,
    ),
    Fault(
        "norm-final-added",
        "norm",
        "has one more norm, without gain and bias, before the head",
        "the end of GPT-2, in a port of GPT",
        predict=AtSites(
            {"ln_2": _once_more}, where=lambda config, site: site.layer == config.n_layer - 1
        ),
        of=lambda config: not config.norm_first,
    ),
)
