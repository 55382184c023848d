"""Several sequences through the oracle side by side, so that each weight is looked up once for all.

A large model's time goes into reading its weights. Runs that differ in their tokens, their noise or
in a small step of the weights can share that. The operations are the oracle's own
(``reference.ops``), wired as ``gpt_verify.sites`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.local import vocabulary_tiles
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

Array = NDArray[Any]
#: The site, its value as computed, and its inputs → the value that is used from there on.
Alter = Callable[[Site, Array, Mapping[str, Array]], Array]

#: Operations whose value has the heads along its first axis.
BY_HEAD = ("scores", "pattern")


def side_by_side(
    config: Config,
    weights: DeclaredWeights,
    tokens_RT: NDArray[np.integer],
    dtype: type[np.floating] = np.float64,
    alter: Alter = lambda site, value, inputs: value,
) -> Iterator[tuple[Site, Array]]:
    """Every site of every row, in the order of computation.

    Values are [R·T, features], the rows one below the other; scores and patterns are
    [R·H, T, S]. ``of_row`` takes one row out of them.

    Args:
        config: sizes.
        weights: the tensors, in float32 or widened to float64.
        tokens_RT: int[R, T].
        dtype: of the arithmetic, float64 or float32.
        alter: what is done to each value before anything reads it.
    """
    table = sites(config)
    last_reader = {name: site.name for site in table.values() for name in site.inputs}
    values: dict[str, Array] = {}
    for site in table.values():
        inputs = {name: values[name] for name in site.inputs}
        value = _apply(config, weights, tokens_RT, dtype, site, list(inputs.values()))
        values[site.name] = value = alter(site, value, inputs)
        yield site, value
        for name in site.inputs:
            if last_reader[name] == site.name:
                del values[name]


def of_row(site: Site, value: Array, row: int, rows: int) -> Array:
    """One row's part of a value: [T, features], or [H, T, S]."""
    part: Array = value.reshape(rows, -1, *value.shape[1:])[row]
    return part


def tensor(weights: DeclaredWeights, name: str, dtype: type[np.floating]) -> Array:
    """A tensor in the arithmetic's format."""
    return weights.float64(name) if dtype is np.float64 else np.asarray(weights[name])


def times_head(
    x_ND: Array, weights: DeclaredWeights, config: Config, dtype: type[np.floating]
) -> Array:
    """Logits [N, V], a tile of the vocabulary at a time: the table is never widened whole."""
    head_VD = weights[config.head]
    logits_NV = np.empty((len(x_ND), config.n_vocab), dtype)
    for rows in vocabulary_tiles(1, config.n_vocab, config.n_embd):
        logits_NV[:, rows] = ops.unembed(x_ND, head_VD[rows].astype(dtype, copy=False))
    return logits_NV


def _apply(
    config: Config,
    weights: DeclaredWeights,
    tokens_RT: NDArray[np.integer],
    dtype: type[np.floating],
    site: Site,
    inputs: list[Array],
) -> Array:
    if site.operation == "embed":
        wte_VD, wpe_PD = weights["wte"], weights["wpe"]
        return np.concatenate([ops.embed(row_T, wte_VD, wpe_PD, dtype) for row_T in tokens_RT])
    if site.operation == "unembed":
        return times_head(inputs[0], weights, config, dtype)
    if site.operation == "scores":
        q, k, _ = heads(config, tokens_RT.shape[1], inputs[0])
        return ops.attention_scores(q, k)
    if site.operation == "mix":
        # The heads of all rows come out side by side, [T, R · D].
        mix = ops.attention_mix(inputs[0], heads(config, tokens_RT.shape[1], inputs[1])[2])
        return mix.reshape(len(mix), -1, config.n_embd).swapaxes(0, 1).reshape(-1, config.n_embd)
    tensors = [tensor(weights, name, dtype) for name in site.weights]
    return _OPERATIONS[site.operation](*inputs, *tensors)


def heads(config: Config, length: int, x_NC: Array) -> list[Array]:
    """q, k and v as [R·H, T, K]: rows read from each other as little as heads do."""
    shape = (config.n_head, -1, length, config.head_size)
    parts = ops.split_heads(x_NC, config.n_head)
    return [part.reshape(shape).swapaxes(0, 1).reshape(-1, *shape[2:]) for part in parts]


_OPERATIONS: dict[str, Callable[..., Array]] = {
    "layer_norm": ops.layer_norm,
    "linear": ops.linear,
    "pattern": ops.causal_softmax,
    "gelu": ops.gelu,
    "add": lambda x, y: x + y,
}
