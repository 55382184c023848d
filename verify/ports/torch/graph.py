"""Finding the two ends of wte in the graph that torch's autograd records.

Names and classes of modules say nothing here either. A node of the graph is an operation, its
edges lead to what made its operands, and in the end to parameters. From the logits back, the first
operation of which one operand comes from wte alone, by nothing but views and copies, and another
one from elsewhere, is the last product. Whatever else reads wte is the lookup.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

#: ``torch.autograd.graph.Node``.
Node = Any

#: What these make of a table is no longer a table: rows of it, or a product.
_GATHERS = ("Embedding", "Index", "Gather", "Take")
_PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv", "Dot", "Linear", "Convolution")
#: A checkpoint that computes its part again, and whose operations the graph does not show.
HIDING = "CheckpointFunctionBackward"


@dataclass(frozen=True)
class Read:
    """One edge of the graph: an operation and one of its operands."""

    node: Node
    operand: int

    @property
    def source(self) -> tuple[Node, int]:
        """The node that made the operand, and which of its outputs it is."""
        made: tuple[Node, int] = self.node.next_functions[self.operand]
        return made


@dataclass(frozen=True)
class Ends:
    """The operations that read wte.

    Attributes:
        heads: by the last product; several where it is made in pieces.
        lookups: by anything else.
        hidden: an operation that is a whole model in one (a compiled one), or that does not show
            what it runs, so that the two cannot be told apart.
    """

    heads: tuple[Read, ...]
    lookups: tuple[Read, ...]
    hidden: str | None = None


class Graph:
    """Everything that a tensor was made of.

    Args:
        tensor: it must require a gradient.
        tables: the parameters that are wte, or a head of its own in its place.
        others: parameters that are known to be neither these nor wpe.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        tables: Collection[torch.Tensor],
        others: Collection[torch.Tensor],
    ) -> None:
        self.root: Node = tensor.grad_fn
        self._tables, self._others = _ids(tables), _ids(others)
        #: Operands before the operations that read them. Kept, or their identities would change.
        self.nodes = list(_operands_first(self.root))
        self._bits: dict[int, int] = {}
        self._leaves: dict[Node, int] = {}
        self._whole_tables: set[Node] = set()
        for node in self.nodes:
            self._note(node)

    def leaf(self, node: Node) -> torch.Tensor | None:
        """The parameter that a node stands for, if it is not an operation."""
        return getattr(node, "variable", None)

    def tables_of(self, node: Node) -> set[int]:
        """Identities of the tables that a node was made of."""
        return {i for i in self._tables if self._leaves[node] & self._bits.get(i, 0)}

    @cached_property
    def recomputes(self) -> bool:
        """It has reentrant checkpoints, which only ``backward`` without arguments can follow."""
        return any(node.name() == HIDING for node in self.nodes)

    @cached_property
    def ends(self) -> Ends:
        reads = [
            read
            for node in self.nodes
            if node not in self._whole_tables
            for read in _reads(node)
            if read.source[0] in self._whole_tables
        ]
        if not self._of_others(self.root):  # nothing but the last product is differentiable
            return Ends(tuple(reads), ())
        products = self._last_products()
        heads = [read for read in reads if read.node in products]
        lookups = [read for read in reads if read.node not in products]
        hidden = next((n.name() for n in products if self._is_many(n)), None)
        if not heads and self.recomputes:
            hidden = HIDING
        return Ends(tuple(heads), tuple(lookups), hidden)

    def joins(self, tensor: torch.Tensor) -> list[Node]:
        """Operations in which what was looked up in a table meets what was made of ``tensor`` and
        of nothing else: the sum of the embeddings, where ``tensor`` is the other table."""
        rows = self._bits.get(id(tensor), 0)
        tables = self._mask(self._tables)
        heads = {read.node for read in self.ends.heads}

        def both(node: Node) -> bool:
            leaves = self._leaves[node]
            return bool(leaves & rows and leaves & tables and not leaves & ~(rows | tables))

        return [
            node
            for node in self.nodes
            if node not in heads
            and both(node)
            and not any(both(read.source[0]) for read in _reads(node))
        ]

    def readers(self, tensor: torch.Tensor) -> list[Node]:
        """Operations that read a parameter as it is."""
        return [
            node
            for node in self.nodes
            if any(self.leaf(read.source[0]) is tensor for read in _reads(node))
        ]

    def _note(self, node: Node) -> None:
        """Which parameters it was made of, and whether it is a table still."""
        leaf = self.leaf(node)
        if leaf is not None:
            self._leaves[node] = self._bits.setdefault(id(leaf), 1 << len(self._bits))
            if id(leaf) in self._tables:
                self._whole_tables.add(node)
            return
        made_of = [read.source[0] for read in _reads(node)]
        leaves = 0
        for source in made_of:
            leaves |= self._leaves[source]
        self._leaves[node] = leaves
        uses = node.name().startswith((*_GATHERS, *_PRODUCTS))
        if made_of and not uses and all(source in self._whole_tables for source in made_of):
            self._whole_tables.add(node)

    def _last_products(self) -> set[Node]:
        """The products nearest the logits, no further back than the first that joins a table to the
        rest.

        Views, copies and sums of the logits lie before it; several where they were put together.
        """
        products: set[Node] = set()
        pending, seen = [self.root], {self.root}
        while pending:
            node = pending.pop()
            sources = [read.source[0] for read in _reads(node)]
            of_table = [source in self._whole_tables for source in sources]
            if any(of_table) and not all(of_table) and self._of_others(node):
                products.add(node)
                continue
            for source in sources:
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
        return products

    def _is_many(self, node: Node) -> bool:
        """It reads other tensors of the model as well, which no last product does."""
        return any(id(self.leaf(read.source[0])) in self._others for read in _reads(node))

    def _of_others(self, node: Node) -> bool:
        return bool(self._leaves[node] & self._mask(self._others))

    def _mask(self, ids: Collection[int]) -> int:
        return sum(self._bits[i] for i in ids if i in self._bits)


def _ids(tensors: Collection[torch.Tensor]) -> set[int]:
    return {id(tensor) for tensor in tensors}


def _reads(node: Node) -> Iterator[Read]:
    for operand, (source, _) in enumerate(node.next_functions):
        if source is not None:
            yield Read(node, operand)


def _operands_first(root: Node) -> Iterator[Node]:
    """Every node once; without recursion, which a deep model would exhaust."""
    done: set[Node] = set()
    pending = [(root, False)]
    while pending:
        node, expanded = pending.pop()
        if node in done:
            continue
        if expanded:
            done.add(node)
            yield node
            continue
        pending.append((node, True))
        pending += [(read.source[0], False) for read in _reads(node)]
