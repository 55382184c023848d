"""A way of rounding, planted in one operation of a model and shown site by site."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from planted_recipes import Model, Way
from recipe_models import source

from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.recipes.identify import Found, Identification
from gpt_verify.reference import Config
from gpt_verify.sites import sites

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def shown(name: str, dtype: str, values: dict[str, Any], seed: int = 0) -> Found:
    """The last of these sites, found out from the others.

    Args:
        name: of the model.
        dtype: that it declares.
        values: site → what a port shows, one row, without its axis.
        seed: of the tokens.
    """
    made = source(name)
    length = max(len(v) if v.ndim == 2 else v.shape[-1] for v in values.values())
    precision = PRECISIONS[dtype]
    recipes = Identification(made.config, DeclaredWeights(made.tensors, precision), precision)
    recipes.begin(ids(made.config, length, seed)[None])
    for site, value in values.items():
        recipes(site, value.detach().float().numpy()[None])
    return recipes.found()[-1]


def ids(config: Config, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.n_vocab, length)


def planted(name: str, site: str, way: Way, dtype: str, seed: int = 0) -> Found:
    """What is found out about a way of computing one site.

    Args: as ``made``.
    """
    return shown(name, dtype, made(name, site, way, dtype, seed), seed)


def made(name: str, site: str, way: Way, dtype: str, seed: int = 0) -> dict[str, Any]:
    """What a port shows that computes one site so: that, the last, and what it reads.

    Args:
        name: of the model.
        site: what is made.
        way: how.
        dtype: of half precision.
        seed: of what it reads.
    """
    of_model, half = source(name), TORCH[dtype]
    config, place = of_model.config, sites(of_model.config)[site]
    length = config.n_ctx
    draw = torch.Generator().manual_seed(seed)
    reads = place.inputs
    if site.endswith("attn.mix"):  # of an attention that shows neither scores nor pattern
        reads = reads[1:]
    values: dict[str, Any] = {}
    for read_site in reads:
        of = sites(config)[read_site]
        shape = (length, of.width) if of.width else (config.n_head, length, length)
        # Far below zero a GELU is what is left of 1 - 1, and no two libraries agree on that.
        scale = 2.0 if of.kind in ("attn.scores", "attn.qkv") else 1.0
        x = scale * torch.randn(shape, generator=draw)
        if of.is_sum or of.looks_up:  # a stream has channels that are larger than others
            x = x * torch.linspace(0.2, 5, shape[-1]) + 0.1
        values[read_site] = x.to(half)
    full = tuple(torch.from_numpy(np.array(of_model.tensors[w])) for w in place.weights)
    rope = None if place.layer is None else config.rope(place.layer)
    tokens = torch.from_numpy(ids(config, length, seed))
    model = Model(
        tuple(w.to(half) for w in full),
        full,
        config.keys.norm.epsilon,
        place.heads or config.n_head,
        rope.theta if rope is not None else 0.0,
        tokens,
        config.n_embd,
    )
    if site.endswith("attn.mix"):
        model = Model(**{**vars(model), "heads": config.n_head})
    result = way(*values.values(), model)
    assert result.dtype is half
    return {**values, site: result}
