"""A module in float64 for a while: its own tensors replaced by wider copies, and put back."""

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


@contextmanager
def widened_each(
    module: torch.nn.Module, watching: Watching = lambda: None
) -> Iterator[set[torch.nn.Module]]:
    """Each submodule's own tensors are widened while it runs, so that at most one is held twice.

    Yields the modules that hold tensors and have not run yet.
    """
    undo: list[Callable[[], None]] = []
    unread: set[torch.nn.Module] = set()

    def enter(part: torch.nn.Module, *_: Any) -> None:
        unread.discard(part)
        undo.append(_widen([part], watching()))

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


def _widen(modules: Iterable[torch.nn.Module], trace: SiteTrace | None) -> Callable[[], None]:
    """Replace the own floating tensors of these modules; returns what undoes it."""
    owned = [entry for module in modules for entry in _own_tensors(module)]
    wide = _widened([tensor for _, _, tensor in owned])
    for where, name, tensor in owned:
        if trace is not None:
            trace.stands_for(wide[id(tensor)], tensor)
        where[name] = wide[id(tensor)]

    def restore() -> None:
        for where, name, tensor in owned:
            where[name] = tensor
            if trace is not None:
                trace.forget(wide[id(tensor)])

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
