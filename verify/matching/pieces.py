"""Parameters that hold more than one tensor: a stack over the layers, a table with padding.

A port may keep the same matrix of all layers as one ``[n_layer, …]`` array, and a vocabulary that
is padded to a round number of rows. Each such parameter is taken apart before anything is matched:
``blocks.w`` becomes ``blocks.w[0]``, ``blocks.w[1]`` …; ``wte`` becomes ``wte[:50257]`` and the
padding ``wte[50257:]``, of which nothing is asked but that it is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.matching.layouts import Layout, layouts
from gpt_verify.matching.match import fingerprint
from gpt_verify.matching.pieced import numbers
from gpt_verify.matching.placement import squeeze
from gpt_verify.numerics.weights import TABLES, DeclaredWeights
from gpt_verify.port import Parameter
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import split_qkv, tensor_table


@dataclass(frozen=True)
class Piece:
    """A parameter, or one tensor of several in it.

    Attributes:
        name: ``blocks.w[3]``.
        parameter: the port's own name, ``blocks.w``.
        take: its place on the first axis; None where it is the whole.
        padding: rows of a table beyond the vocabulary.
    """

    name: str
    parameter: str
    take: int | slice | None = None
    padding: bool = False

    def of(self, value: Any) -> Any:
        """The piece of a NumPy array or a torch tensor: a view."""
        return value if self.take is None else value[self.take]


def pieces(
    parameters: Sequence[Parameter], config: Config, weights: DeclaredWeights
) -> list[Piece]:
    """The pieces that each parameter is made of. Only those are read whose shape leaves more than
    one way."""
    shapes = _Shapes(config, weights)
    ways = [shapes.ways(parameter) for parameter in parameters]
    stacks = any(way == ["stack"] for way in ways)
    found: list[Piece] = []
    for parameter, open_ways in zip(parameters, ways, strict=True):
        way = open_ways[0]
        if way == "padded" and shapes.of_others(parameter):
            way = "whole"
        if len(open_ways) > 1:
            way = shapes.by_content(parameter) or ("stack" if stacks else open_ways[0])
        found += _taken_apart(parameter.name, way, config)
    return found


def _taken_apart(name: str, way: str, config: Config) -> list[Piece]:
    n = config.n_vocab
    if way == "stack":
        return [Piece(f"{name}[{layer}]", name, layer) for layer in range(config.n_layer)]
    if way == "padded":
        return [
            Piece(f"{name}[:{n}]", name, slice(None, n)),
            Piece(f"{name}[{n}:]", name, slice(n, None), padding=True),
        ]
    return [Piece(name, name)]


class _Shapes:
    """Which ways a shape allows, and which of them the values confirm."""

    def __init__(self, config: Config, weights: DeclaredWeights) -> None:
        self._config, self._weights = config, weights
        self._known: dict[tuple[int, ...], list[str]] = {}
        self._layouts = list(_layouts(config))
        self._in_layers = [layout for name, layout in self._layouts if name.startswith("h0/")]
        self._prints: set[bytes] = set()

    def ways(self, parameter: Parameter) -> list[str]:
        """The ways that are possible among ``whole``, ``stack`` and ``padded``, the likeliest
        first."""
        shape = parameter.shape
        if shape not in self._known:
            self._known[shape] = list(self._ways(shape)) or ["whole"]
        return self._known[shape]

    def _ways(self, shape: tuple[int, ...]) -> Iterator[str]:
        whole = any(layout.fits(shape) for _, layout in self._layouts)
        if whole:
            yield "whole"
        layers = self._config.n_layer
        stacked = len(shape) > 1 and shape[0] == layers > 1
        if stacked and any(layout.fits(shape[1:]) for layout in self._in_layers):
            yield "stack"
        rows, width = self._config.n_vocab, self._config.n_embd
        if not whole and len(shape) == 2 and shape[1] == width and shape[0] > rows:
            yield "padded"

    def of_others(self, parameter: Parameter) -> bool:
        """Whether what is as wide as the vocabulary's table, and longer, begins with a vector, or a
        row or a column of a matrix: it is several of these."""
        first, width = parameter.read()[:1], self._config.n_embd
        if np.array_equal(first, self._weights["wte"][:1]):
            return False
        for name, spec in tensor_table(self._config).items():
            if name not in TABLES and width in spec.shape:
                value = np.atleast_2d(squeeze(self._weights[name]))
                for rows in (value, value.T):
                    if rows.shape[1] == width and np.isin(numbers(first), numbers(rows))[0]:
                        return True
        return False

    def by_content(self, parameter: Parameter) -> str | None:
        """The way in which it is, or has, a tensor of the checkpoint."""
        if not self._prints:
            self._prints = {
                fingerprint(layout.to_port_layout(part))
                for name, layout in _layouts(self._config, every_layer=True)
                for part in _parts(self._weights[name], layout)
            }
        value = parameter.read()
        if fingerprint(value) in self._prints:
            return "whole"
        return "stack" if any(fingerprint(part) in self._prints for part in value) else None


def _layouts(config: Config, every_layer: bool = False) -> Iterator[tuple[str, Layout]]:
    for spec in tensor_table(config).values():
        if not every_layer and spec.name.startswith("h") and not spec.name.startswith("h0/"):
            continue
        for layout in layouts(spec.name, spec.shape, config):
            yield spec.name, layout
        if spec.parts:
            for layout in layouts(spec.name, spec.part_shape, config, part=True):
                yield spec.name, layout


def _parts(value: NDArray[np.floating], layout: Layout) -> list[NDArray[np.floating]]:
    """The tensor, or its parts, of which the layout is one."""
    return [value] if value.size == layout.size else split_qkv(value)
