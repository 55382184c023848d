"""Whether one parameter feeds both ends of a torch module, read off the graph of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from gpt_verify.port import NotExamined
from gpt_verify.ports.torch.graph import Graph, Read
from gpt_verify.ports.torch.memory import clusters

if TYPE_CHECKING:
    from gpt_verify.ports.torch.gradients import Differentiation
    from gpt_verify.ports.torch.module import TorchModule


class Tying:
    """``tying`` of a torch module: see ``gpt_verify.port.Port``."""

    def __init__(self, port: TorchModule, differentiation: Differentiation) -> None:
        self._port, self._differentiation = port, differentiation

    def tying(self) -> tuple[bool, str]:
        probe = np.zeros((1, min(2, self._port.config.n_ctx)), np.int64)
        # A float64 copy's tensors are part of its graph only while they are differentiable.
        derivatives = self._port.differentiable(lambda tensor, value: None)
        with self._differentiation.recording(), derivatives:
            graph = self._differentiation.graph(self._port.run(probe))
            tables = [table.tensor for table in self._differentiation.tables()]
            if not tables:
                raise NotExamined("no graph: no parameter could be matched to wte")
            return self._examined(graph, tables)

    def _examined(self, graph: Graph, tables: Collection[torch.Tensor]) -> tuple[bool, str]:
        ends = graph.ends
        if ends.hidden is not None:
            raise NotExamined(f"no graph: {ends.hidden} does not show what it runs")
        if not ends.heads:
            return False, (
                f"no product on the way to the logits leads back to {self._names(tables)}: the "
                "head is detached from it, or reads something that is no parameter"
            )
        if not ends.lookups:
            return False, (
                f"no lookup leads back to {self._names(tables)}: it is detached from it, or reads "
                "something that is no parameter"
            )
        rows = f"{_operations(ends.lookups)} (lookup)"
        product = f"{_operations(ends.heads)} (last product)"
        read, used = (
            [t for t in tables if id(t) in _tables(graph, reads)]
            for reads in (ends.lookups, ends.heads)
        )
        both = {id(t): t for t in (*read, *used)}.values()
        if len(both) == 1:
            return True, f"{rows} and {product} read the one parameter {self._names(both)}"
        if len(clusters(both)) == 1:
            return True, f"{rows} and {product} read one memory, that of {self._names(both)}"
        return False, (
            f"{rows} reads {self._names(read)}, but {product} reads {self._names(used)}: "
            "two matrices"
        )

    def _names(self, tensors: Iterable[torch.Tensor]) -> str:
        """Every name of these parameters."""
        wanted = {id(tensor) for tensor in tensors}
        named = self._port.module.named_parameters(remove_duplicate=False)
        return " = ".join(name for name, tensor in named if id(tensor) in wanted)


def _operations(reads: Iterable[Read]) -> str:
    return " and ".join(sorted({read.node.name() for read in reads}))


def _tables(graph: Graph, reads: Iterable[Read]) -> set[int]:
    return {key for read in reads for key in graph.tables_of(read.source[0])}
