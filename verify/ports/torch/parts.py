"""What passes the two ends of wte, and any other operation, while a backward pass runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpt_verify.port import End
from gpt_verify.ports.torch.graph import Graph, Node, Read


@dataclass(frozen=True)
class Table:
    """A parameter that is wte, or a head of its own in its place.

    Attributes:
        tensor: the parameter.
        transposed: it is kept as [D, V].
    """

    tensor: torch.Tensor
    transposed: bool


def in_memory_of(table: Table, other: torch.Tensor) -> Table | None:
    """Another parameter as a view of a table, if that is what it is."""
    mine, its = table.tensor, other
    if mine.untyped_storage().data_ptr() != its.untyped_storage().data_ptr():
        return None
    if mine.storage_offset() != its.storage_offset() or mine.numel() != its.numel():
        return None
    layout, its_layout = _layout(mine), _layout(its)
    if its_layout not in (layout, layout[::-1]):
        return None
    return Table(other, table.transposed != (its_layout != layout))


def _layout(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Length and step of each axis that has one."""
    axes = zip(tensor.shape, tensor.stride(), strict=True)
    return [(length, step) for length, step in axes if length != 1]


class Parts:
    """What the two ends of wte contribute, [V, D] each, while a backward pass runs.

    Args:
        graph: of the run, from its logits back.
        tables: the parameters that hold wte.
        shape: (V, D), of each contribution.
        arrived: takes each contribution to one of the ends; they add up.
    """

    def __init__(
        self,
        graph: Graph,
        tables: Sequence[Table],
        shape: tuple[int, int],
        arrived: Callable[[End, torch.Tensor], None],
    ) -> None:
        self._graph, self._shape, self._arrived = graph, shape, arrived
        self._tables = {id(table.tensor): table for table in tables}

    def __enter__(self) -> Parts:
        ends = self._graph.ends
        both = ((End.HEAD, ends.heads), (End.LOOKUP, ends.lookups))
        self._handles = [self._watch(read, end) for end, reads in both for read in reads]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def apart(self) -> bool:
        """Whether the two ends can be told apart; one that was cut off contributes nothing."""
        return bool(self._tables) and self._graph.ends.hidden is None

    def _watch(self, read: Read, end: End) -> torch.utils.hooks.RemovableHandle:
        def collect(found: Sequence[torch.Tensor | None], _: object) -> None:
            value = found[read.operand]
            if value is not None:
                self._pull(*read.source, value, end)

        return read.node.register_hook(collect)

    def _pull(self, node: Node, output: int, value: torch.Tensor, end: End) -> None:
        """Carry a derivative back through the views and copies that lie between a reader and the
        parameter."""
        made_like = node._input_metadata
        value = value.sum_to_size(made_like[output].shape)  # it may have been broadcast
        leaf = self._graph.leaf(node)
        if leaf is not None:
            self._add(self._tables[id(leaf)], value, end)
            return
        given: list[torch.Tensor | None] = [None] * len(made_like)
        given[output] = value
        made: Any = value
        if not getattr(node, "is_cast", False):
            # What is written in Python is called by another name.
            call: Any = getattr(node, "apply", node)
            made = call(*given)
        for (source, at), part in zip(node.next_functions, _tuple(made), strict=True):
            if source is not None and part is not None:
                self._pull(source, at, part, end)

    def _add(self, table: Table, value: torch.Tensor, end: End) -> None:
        dense = value.to_dense() if value.is_sparse else value
        rows = dense.reshape(self._shape[::-1]).t() if table.transposed else dense
        if not table.transposed and rows.ndim == 2:  # a vocabulary that is padded has more of them
            rows = rows[: self._shape[0]]
        self._arrived(end, rows.reshape(self._shape).to(wide_dtype(dense.dtype)))


class Outputs:
    """Derivatives with respect to what some operations made, while a backward pass runs."""

    def __init__(self, nodes: Sequence[Node], shape: tuple[int, int]) -> None:
        self._nodes, self._shape = nodes, shape
        self._found: dict[int, torch.Tensor] = {}

    def __enter__(self) -> None:
        self._handles = [self._watch(order, node) for order, node in enumerate(self._nodes)]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def first(self) -> torch.Tensor | None:
        """[T, D] of the first of them that has this shape; axes of length 1 do not count."""
        for order in range(len(self._nodes)):
            value = self._found.get(order)
            if value is not None and _squeezed(value.shape) == _squeezed(self._shape):
                return value.reshape(self._shape)
        return None

    def _watch(self, order: int, node: Node) -> torch.utils.hooks.RemovableHandle:
        def collect(found: Sequence[torch.Tensor | None]) -> None:
            if found[0] is not None:
                self._found[order] = found[0]

        return node.register_prehook(collect)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _squeezed(shape: Sequence[int]) -> list[int]:
    return [n for n in shape if n != 1]


def _tuple(made: torch.Tensor | tuple[torch.Tensor | None, ...] | None) -> tuple[object, ...]:
    return made if isinstance(made, tuple) else (made,)
