"""A module in float64 for a while: its own tensors replaced by wider copies, and put back.

Other formats are for a copy that was cast and is lent tensors that were not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from gpt_verify.errors import PortError
from gpt_verify.ports.torch.differentiable import Differentiable
from gpt_verify.ports.torch.memory import clusters, span, view_like
from gpt_verify.ports.torch.trace import SiteTrace

#: The trace that watches at the moment: it is told which copy stands for which tensor.
Watching = Callable[[], SiteTrace | None]
#: What records derivatives at the moment, if anything does.
Recording = Callable[[], Differentiable | None]
#: Where a tensor is to be, and in which format; None where it stays as it is.
Format = tuple[torch.device, torch.dtype]
Formats = Callable[[torch.Tensor], Format | None]


def to_float64(tensor: torch.Tensor) -> Format | None:
    """The format of the float64 copy."""
    widens = tensor.is_floating_point() and tensor.dtype != torch.float64
    return (tensor.device, torch.float64) if widens else None


def cast_to(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The module in another precision. Complex tables stay complex, as with ``module.bfloat16()``;
    ``module.to(torch.bfloat16)`` takes their real part."""
    cast: torch.nn.Module = module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
    return cast


@contextmanager
def converted(
    module: torch.nn.Module,
    probe: Callable[[], object],
    formats: Formats = to_float64,
    watching: Watching = lambda: None,
    before_whole: Callable[[], None] = lambda: None,
    recording: Recording = lambda: None,
) -> Iterator[None]:
    """A module is converted submodule by submodule where that can be, so that at most one is held
    in both formats. One that reads another one's parameters directly is converted as a whole
    instead.

    Args:
        module: what is converted.
        probe: runs it once; raises where it does not run.
        formats: into what.
        watching: as above.
        before_whole: called before it is converted as a whole; raises where that is too much.
        recording: where derivatives are recorded, they flow through what is converted one by one.
    """
    for whole in (False, True):
        if whole:
            before_whole()
            made = converted_whole(module, formats, watching)
        else:
            made = converted_each(module, formats, watching, recording)
        with ExitStack() as stack:
            unread = stack.enter_context(made)
            try:
                probe()
            except (RuntimeError, TypeError, PortError):
                if whole:
                    raise
                continue
            if unread:  # another module reads what these hold, and reads it unconverted
                continue
            yield
            return


@contextmanager
def converted_each(
    module: torch.nn.Module,
    formats: Formats = to_float64,
    watching: Watching = lambda: None,
    recording: Recording = lambda: None,
) -> Iterator[set[torch.nn.Module]]:
    """Each submodule's own tensors are converted while it runs, so that at most one is held twice.

    Yields the modules that hold tensors and have not run yet.

    Args:
        module: what is converted.
        formats: the format of each tensor while its submodule runs; None where it stays as it is.
        watching: the trace that is told which copy stands for which tensor, if one watches.
        recording: what records derivatives, which flow through the copies, if anything does.
    """
    undo: list[Callable[[], None]] = []
    unread: set[torch.nn.Module] = set()

    def enter(part: torch.nn.Module, *_: Any) -> None:
        unread.discard(part)
        undo.append(_convert([part], formats, watching(), recording()))

    def leave(*_: Any) -> None:
        undo.pop()()

    handles = []
    for part in module.modules():
        if any(True for _ in _own_tensors(part, formats)):
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
def converted_whole(
    module: torch.nn.Module, formats: Formats = to_float64, watching: Watching = lambda: None
) -> Iterator[set[torch.nn.Module]]:
    """All tensors at once. What shared memory shares it afterwards: a tied head stays tied."""
    restore = _convert(module.modules(), formats, watching())
    try:
        yield set()
    finally:
        restore()


def _convert(
    modules: Iterable[torch.nn.Module],
    formats: Formats,
    trace: SiteTrace | None,
    derivatives: Differentiable | None = None,
) -> Callable[[], None]:
    """Replace the own tensors of these modules; returns what undoes it."""
    owned = [entry for module in modules for entry in _own_tensors(module, formats)]
    tensors = [tensor for _, _, tensor in owned]
    if derivatives is None:
        copies = _copies(tensors, formats)
    else:
        # Once, whatever the number of its names: a second widened copy would be freed at once, and
        # whatever lies in its memory next be taken for this tensor.
        once = {id(tensor): tensor for tensor in tensors}
        copies = {key: derivatives.widen(tensor) for key, tensor in once.items()}
    for where, name, tensor in owned:
        if trace is not None:
            trace.stands_for(copies[id(tensor)], tensor)
        where[name] = copies[id(tensor)]

    def restore() -> None:
        for where, name, tensor in owned:
            where[name] = tensor
            if trace is not None:
                trace.forget(copies[id(tensor)])
            if derivatives is not None:
                derivatives.forget(copies[id(tensor)])

    return restore


def _copies(tensors: list[torch.Tensor], formats: Formats) -> dict[int, torch.Tensor]:
    """Identity of a tensor → its copy in its format."""
    made: dict[int, torch.Tensor] = {}
    with torch.no_grad(), _disable_current_modes():
        for cluster in clusters(tensors):
            format = formats(cluster[0])
            assert format is not None, "only tensors that have one are converted"
            if len(cluster) == 1:
                made[id(cluster[0])] = cluster[0].detach().to(*format)
                continue
            first, size = span(cluster)
            flat = cluster[0].detach().as_strided((size,), (1,), first).to(*format)
            made |= {id(tensor): view_like(flat, tensor, first) for tensor in cluster}
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        if isinstance(tensor, torch.nn.Parameter):
            made[id(tensor)] = torch.nn.Parameter(made[id(tensor)], tensor.requires_grad)
    return made


def _own_tensors(
    module: torch.nn.Module, formats: Formats
) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """A module's own parameters and buffers, not its children's, that are to be converted."""
    for where in (module._parameters, module._buffers):
        for name, tensor in where.items():
            if tensor is not None and formats(tensor) is not None:
                yield where, name, tensor
