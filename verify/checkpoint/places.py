"""A table says where a family's files keep each tensor: its name, transposed or not, fused or not.

A place is a view of what is stored. Read through it, a stored tensor is the checkpoint's; written
through it, the checkpoint's become what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference import Config, TensorSpec, tensor_table

Array = NDArray[Any]
#: A stored tensor, and the number of an expert → the part that is one of the checkpoint's tensors,
#: as a view: its axes may still be split, ``[in, heads, channels]`` for ``[in, out]``.
Cut = Callable[[Array, int], Array]
_GATED = ("gate", "up", "down")


@dataclass(frozen=True)
class Place:
    """The place of one kind of tensor in the files.

    Attributes:
        scope: its stored name without the leaf, ``#`` for the layer and ``@`` for the expert.
        weight, bias: how it is cut out of what is stored.
        weights, biases: shapes of what is stored; None for that of the tensor itself, turned.
        leaves: what stands for ``weight`` and ``bias`` behind the scope, dot included.
    """

    scope: str
    weight: Cut = lambda stored, _: stored.T
    bias: Cut = lambda stored, _: stored
    weights: tuple[int, ...] | None = None
    biases: tuple[int, ...] | None = None
    leaves: tuple[str, str] = (".weight", ".bias")


@dataclass(frozen=True)
class Piece:
    """One tensor of the checkpoint in a file."""

    name: str
    shape: tuple[int, ...]
    cut: Callable[[Array], Array]

    def read(self, stored: Array, spec: TensorSpec) -> Array:
        return np.ascontiguousarray(self.cut(stored).reshape(spec.shape))

    def write(self, stored: Array, value: Array) -> None:
        view = self.cut(stored)
        view[...] = value.reshape(view.shape)


#: Scope of the checkpoint, ``h#/attn/q`` or ``h#/mlp/experts/@/up`` → where it lies.
Places = Mapping[str, str | Place]


def pieces(config: Config, places: Places) -> dict[str, Piece]:
    """The checkpoint's own name → where it lies."""
    return {name: _piece(spec, places) for name, spec in tensor_table(config).items()}


def _piece(spec: TensorSpec, places: Places) -> Piece:
    scope, _, leaf = spec.name.rpartition("/")
    if leaf not in ("w", "g", "b"):  # a table, a vector of its own kind
        scope, leaf = spec.name, "w"
    layer, expert = "", ""
    if match := re.match(r"h(\d+)/", scope):
        layer, scope = match[1], "h#/" + scope[match.end() :]
    if match := re.match(r"h#/mlp/experts/(\d+)/", scope):
        expert, scope = match[1], "h#/mlp/experts/@/" + scope[match.end() :]
    place = places[scope]
    if isinstance(place, str):
        place = Place(place)
    is_bias, number = leaf == "b", int(expert or 0)
    name = place.scope.replace("#", layer).replace("@", expert) + place.leaves[is_bias]
    cut, shape = (place.bias, place.biases) if is_bias else (place.weight, place.weights)
    if spec.role != "matrix" and not is_bias:  # gains and tables lie as they are used
        return Piece(name, spec.shape, lambda stored: stored)
    return Piece(name, shape or spec.shape[::-1], lambda stored: cut(stored, number))


def vector(scope: str) -> Place:
    """A vector under a name without a leaf."""
    return Place(scope, leaves=("", ""))


def by_head(scope: str, config: Config) -> dict[str, Place]:
    """Queries, keys and values of each head side by side: ``[heads, 3, channels]``."""
    h, k, d = config.n_head, config.head_size, config.n_embd

    def part(i: int) -> Place:
        return Place(
            scope,
            lambda stored, _: stored.reshape(h, 3, k, d)[:, i].transpose(2, 0, 1),
            lambda stored, _: stored.reshape(h, 3, k)[:, i],
            (3 * h * k, d),
            (3 * h * k,),
        )

    return {f"h#/attn/{name}": part(i) for i, name in enumerate("qkv")}


def packed(scope: str, config: Config) -> dict[str, Place]:
    """All experts in one tensor, as it is used; gate and up alternate, column by column."""
    assert config.keys.experts is not None, "a model of experts"
    e, d, f = config.keys.experts.count, config.n_embd, config.n_inner
    leaves = ("", "_bias")

    def half(i: int) -> Place:
        return Place(
            f"{scope}.gate_up_proj",
            lambda stored, number: stored[number, :, i::2],
            lambda stored, number: stored[number, i::2],
            (e, d, 2 * f),
            (e, 2 * f),
            leaves,
        )

    def whole(stored: Array, number: int) -> Array:
        part: Array = stored[number]
        return part

    down = Place(f"{scope}.down_proj", whole, whole, (e, f, d), (e, d), leaves)
    at = "h#/mlp/experts/@"
    return {f"{at}/gate": half(0), f"{at}/up": half(1), f"{at}/down": down}


def linears(at: str, names: Mapping[str, str]) -> dict[str, str]:
    """``q → self_attn.q_proj`` within each layer of ``at``."""
    return {f"h#/{own}": f"{at}.#.{stored}" for own, stored in names.items()}


def llama(**more: str) -> dict[str, str | Place]:
    """What Llama's files call everything, and with them those of most families after it."""
    within = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        **{f"attn/{part}": f"self_attn.{part}_proj" for part in "qkvo"},
        **{f"attn/{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
        **{f"mlp/{part}": f"mlp.{part}_proj" for part in _GATED},
        **{f"mlp/experts/@/{part}": f"mlp.experts.@.{part}_proj" for part in _GATED},
        "mlp/router": "mlp.gate",
        **more,
    }
    return {
        "wte": "model.embed_tokens",
        **linears("model.layers", within),
        "ln_f": "model.norm",
        "lm_head": "lm_head",
    }


def four_norms() -> dict[str, str | Place]:
    """The same where what a branch has made is normed as well."""
    return llama(
        ln_1_after="post_attention_layernorm",
        ln_2="pre_feedforward_layernorm",
        ln_2_after="post_feedforward_layernorm",
    )
