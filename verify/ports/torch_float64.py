"""A module in float64 for a while: its own tensors replaced by wider copies, and put back.

A backward pass needs the matrices of the forward pass again. Where each is widened only while its
submodule runs, what autograd keeps of it is the narrow original, which is widened once more when
its turn comes: at no time are all weights held in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from verify.ports.torch_memory import clusters, span, view_like
from verify.ports.torch_trace import SiteTrace

#: The trace that watches at the moment: it is told which copy stands for which tensor.
Watching = Callable[[], SiteTrace | None]
#: Called with a narrow parameter and a contribution to its derivative, in float64.
Arrived = Callable[[torch.Tensor, torch.Tensor], None]


class Differentiable:
    """Widened tensors through which derivatives flow, while a backward pass is recorded and run.

    Args:
        arrived: takes what comes back to each parameter; the parameter itself gets nothing.
    """

    def __init__(self, arrived: Arrived) -> None:
        self._arrived = arrived
        #: Storage of a widened tensor that is in its place now → what it was made of.
        self._narrow: dict[int, torch.Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forward and backward pass belong inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
            yield

    def widen(self, tensor: torch.Tensor) -> torch.Tensor:
        wide: torch.Tensor = Widened.apply(tensor)
        self._narrow[wide.untyped_storage().data_ptr()] = tensor
        if wide.requires_grad:
            wide.register_hook(lambda value: self._arrived(tensor, value))
        return wide

    def forget(self, wide: torch.Tensor) -> None:
        """It may be freed now, and its memory be another tensor's."""
        self._narrow.pop(wide.untyped_storage().data_ptr(), None)

    def _pack(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        narrow = self._narrow.get(tensor.untyped_storage().data_ptr())
        # Detached, or a node would hold itself by its own output.
        kept = tensor.detach() if narrow is None else narrow.detach()
        version, size, step, at = kept._version, tensor.size(), tensor.stride(), 0
        if narrow is not None:
            at = tensor.storage_offset()

        def again() -> torch.Tensor:
            if kept._version != version:
                raise RuntimeError(
                    "what the backward pass needs was modified by an inplace operation"
                )
            return kept if narrow is None else wider(kept).as_strided(size, step, at)

        return again


def _unpack(packed: Callable[[], torch.Tensor]) -> torch.Tensor:
    return packed()


class Widened(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    """The cast to float64. What comes back to it has arrived; the narrow tensor gets nothing."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.is_cast = True  # ``torch_parts`` looks through it
        return wider(tensor)

    @staticmethod
    def backward(ctx: Any, value: torch.Tensor) -> None:
        return None


def wider(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64)


@contextmanager
def widened_each(
    module: torch.nn.Module,
    watching: Watching = lambda: None,
    differentiating: Callable[[], Differentiable | None] = lambda: None,
) -> Iterator[set[torch.nn.Module]]:
    """Each submodule's own tensors are widened while it runs, so that at most one is held twice.

    Yields the modules that hold tensors and have not run yet.
    """
    undo: list[Callable[[], None]] = []
    unread: set[torch.nn.Module] = set()

    def enter(part: torch.nn.Module, *_: Any) -> None:
        unread.discard(part)
        undo.append(_widen([part], watching(), differentiating()))

    def leave(*_: Any) -> None:
        undo.pop()()

    handles = []
    for part in module.modules():
        if any(True for _ in _own_tensors(part)):
            unread.add(part)
            handles.append(part.register_forward_pre_hook(enter, prepend=True))
            handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield unread
    finally:
        for handle in handles:
            handle.remove()
        while undo:
            undo.pop()()


@contextmanager
def widened_whole(
    module: torch.nn.Module, watching: Watching = lambda: None
) -> Iterator[set[torch.nn.Module]]:
    """All tensors at once. What shared memory shares it in float64 too: a tied head stays tied."""
    restore = _widen(module.modules(), watching())
    try:
        yield set()
    finally:
        restore()


def _widen(
    modules: Iterable[torch.nn.Module],
    trace: SiteTrace | None,
    derivatives: Differentiable | None = None,
) -> Callable[[], None]:
    """Replace the own floating tensors of these modules; returns what undoes it."""
    owned = [entry for module in modules for entry in _own_tensors(module)]
    tensors = [tensor for _, _, tensor in owned]
    if derivatives is None:
        wide = _widened(tensors)
    else:
        wide = {id(tensor): derivatives.widen(tensor) for tensor in tensors}
    for where, name, tensor in owned:
        if trace is not None:
            trace.stands_for(wide[id(tensor)], tensor)
        where[name] = wide[id(tensor)]

    def restore() -> None:
        for where, name, tensor in owned:
            where[name] = tensor
            if trace is not None:
                trace.forget(wide[id(tensor)])
            if derivatives is not None:
                derivatives.forget(wide[id(tensor)])

    return restore


def _widened(tensors: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Identity of a tensor → its copy in float64."""
    wide: dict[int, torch.Tensor] = {}
    with torch.no_grad(), _disable_current_modes():
        for cluster in clusters(tensors):
            if len(cluster) == 1:
                wide[id(cluster[0])] = cluster[0].detach().to(torch.float64)
                continue
            first, size = span(cluster)
            flat = cluster[0].detach().as_strided((size,), (1,), first).to(torch.float64)
            wide |= {id(tensor): view_like(flat, tensor, first) for tensor in cluster}
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        if isinstance(tensor, torch.nn.Parameter):
            wide[id(tensor)] = torch.nn.Parameter(wide[id(tensor)], tensor.requires_grad)
    return wide


def _own_tensors(module: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """A module's own parameters and buffers, not its children's, that float64 would widen."""
    for where in (module._parameters, module._buffers):
        for name, tensor in where.items():
            if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64:
                yield where, name, tensor
