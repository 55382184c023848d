"""Models on which claims about norms, sums and the MLP come out the other way."""

from __future__ import annotations

from typing import Any

import numpy as np
from faulted_cases import altered, faulted, torch_model, weights
from models import checkpoint

from gpt_verify.claims.case import Case
from gpt_verify.graph.call import Call
from gpt_verify.reference import ops

Array = Any


@faulted("ln-unit-norm")
def divided_by_the_length() -> Case:
    """Layer norm divides by the length of the centred vector."""

    def unit(c: Call) -> Array:
        centred = c.x - c.x.mean(-1, keepdims=True)
        return c.own(0) * centred / np.linalg.norm(centred, axis=-1, keepdims=True) + c.own(1)

    return altered({"h.*.ln_1": unit, "h.*.ln_2": unit, "ln_f": unit})


@faulted("ln-eps")
def epsilon_1e6() -> Case:
    """ε is 1e-6 in every norm."""

    def norm(c: Call) -> Array:
        variance = c.x.var(-1, keepdims=True)
        centred = c.x - c.x.mean(-1, keepdims=True)
        return c.own(0) * centred / np.sqrt(variance + 1e-6) + c.own(1)

    return altered({"h.*.ln_1": norm, "h.*.ln_2": norm, "ln_f": norm})


@faulted("ln-count", "final-ln", "lens-final")
def nothing_after_the_last_block() -> Case:
    """ln_f is left out."""
    return altered({"ln_f": lambda c: c.x})


@faulted("resid-form")
def attention_replaces_the_state() -> Case:
    """In the first layer, attention's output is not added to the state but takes its place."""
    return altered({"h.0.resid_mid": lambda c: c.at("attn.out")})


@faulted("resid-scaled")
def sums_scaled() -> Case:
    """What is added is divided by √N, N sums."""

    def add(c: Call) -> Array:
        return c.x + c.values[c.site.inputs[1]] / np.sqrt(2 * c.config.n_layer)

    return altered({"h.*.resid_mid": add, "h.*.resid_post": add})


@faulted("layers-unshared")
def one_layer_many_times() -> Case:
    """All layers hold the first one's tensors, as in ALBERT."""
    from dataclasses import replace

    source = checkpoint()
    shared = {
        name: source.tensors["h0/" + name.partition("/")[2]] if name.startswith("h") else value
        for name, value in source.tensors.items()
    }
    return weights(replace(source, tensors=shared))


@faulted("pre-ln")
def no_norms_in_the_blocks() -> Case:
    """Attention and MLP read the state as it is."""
    return altered({"h.*.ln_1": lambda c: c.x, "h.*.ln_2": lambda c: c.x})


@faulted("post-ln")
def norm_after_the_sum() -> Case:
    """Sub-blocks read the state as it is, and their sums are normed."""

    def summed(norm: str) -> Any:
        def add(c: Call) -> Array:
            x = c.x + c.values[c.site.inputs[1]]
            g, b = (c.w(f"h{c.layer}/{norm}/{leaf}") for leaf in "gb")
            return ops.layer_norm(x, g, b)

        return add

    return altered(
        {
            "h.*.ln_1": lambda c: c.x,
            "h.*.ln_2": lambda c: c.x,
            "h.*.resid_mid": summed("ln_1"),
            "h.*.resid_post": summed("ln_2"),
        }
    )


# MLP


@faulted("act-relu", "gelu-linear-zero", "gelu-curvature", "relu-nonlinear-small")
def relu_in_its_place() -> Case:
    """The activation is ReLU."""
    return altered({"h.*.mlp.act": lambda c: np.maximum(c.x, 0)})


@faulted("gelu-which")
def erf_gelu() -> Case:
    """torch's nn.GELU() in transformers' model."""
    import torch

    def alter(model: Any) -> None:
        for block in model.transformer.h:
            block.mlp.act = torch.nn.GELU()

    return torch_model(alter)


@faulted("mlp-widen")
def mlp_twice_as_wide() -> Case:
    """The hidden layer has half of its channels."""

    def half(c: Call) -> Array:
        return ops.linear(c.x, c.own(0), c.own(1))[:, : 2 * c.config.n_embd]

    def out(c: Call) -> Array:
        return c.x @ c.own(0)[: 2 * c.config.n_embd] + c.own(1)

    return altered({"h.*.mlp.pre": half, "h.*.mlp.out": out})
