"""Queries, keys and values, however a model keeps them: side by side in one site, or in three, with
keys and values that several heads share."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.budgets import Measured
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config

Array = NDArray[np.floating]
Part = Literal["q", "k", "v"]


def split(config: Config, x_TX: Array, part: Part) -> Array:
    """What the scores or the mix read → [H, T, K]."""
    if config.keys.fused:
        return ops.split_heads(x_TX, config.n_head)["qkv".index(part)]
    if part == "q":
        return ops.heads_of(x_TX, config.n_head)
    return ops.shared(ops.heads_of(x_TX, config.n_kv), config.n_head)


def split_measured(config: Config, x: Measured, part: Part, heads: slice) -> Measured:
    """What the scores or the mix read, with its budget, of some heads.

    Args:
        config: sizes.
        x: a value and its budget, [T, X].
        part: queries, keys or values.
        heads: which of the H.

    Returns:
        [heads, T, K], with the budget where x has one.
    """
    budget = None if x.budget is None else split(config, x.budget, part)[heads]
    return Measured(split(config, x.value, part)[heads], budget)


def together(config: Config, d_HTK: Array, part: Part) -> Array:
    """The backward pass of ``split`` where each part is a site of its own: heads that share keys or
    values add up."""
    if part != "q":
        h, t, k = d_HTK.shape
        d_HTK = d_HTK.reshape(config.n_kv, h // config.n_kv, t, k).sum(axis=1)
    return ops.side_by_side(d_HTK)
