"""Any ``torch.nn.Module`` as a port: nothing needs to be said about its names or layout."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from verify.checkpoint import Checkpoint
from verify.errors import PortError
from verify.matching import Matching, match
from verify.numerics.precision import PRECISIONS
from verify.numerics.weights import DeclaredWeights
from verify.ports.port import Dtype, Floats, Parameter, Port, Tokens, Visit
from verify.ports.torch_calls import add_capabilities, logits_of
from verify.ports.torch_trace import SiteTrace, to_numpy

_TORCH = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
Call = Callable[[torch.nn.Module, torch.Tensor], Any]


class TorchModule(Port):
    """A module that maps ids int64[B, T] to logits, under test.

    The module is put into evaluation mode, and moved or cast where that was asked for; nothing
    else about it is changed, and the float64 twin is undone after use.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        checkpoint: Checkpoint,
        name: str,
        dtype: Dtype | None = None,
        device: str = "cpu",
        weights_from: str = "checkpoint",
        call: Call = lambda module, ids: module(ids),
    ) -> None:
        self.module = module.eval().to(device)
        if dtype is not None:
            self.module = self.module.to(_TORCH[dtype])
        self.name, self.device, self.weights_from = name, device, weights_from
        self.dtype = dtype or _declared(module)
        self._checkpoint = checkpoint
        self._call = call
        self._matching: Matching | None = None
        self._instrumented: SiteTrace | None = None
        add_capabilities(self)

    def logits(self, tokens: Tokens) -> Floats:
        with torch.no_grad():
            return to_numpy(self._run(tokens))

    def parameters(self) -> Iterator[Parameter]:
        for name, tensor in self.module.named_parameters(remove_duplicate=False):
            yield Parameter(
                name,
                tuple(tensor.shape),
                lambda tensor=tensor: to_numpy(tensor),  # type: ignore[misc]  # bound now, on purpose
                (tensor.untyped_storage().data_ptr(), tensor.storage_offset()),
                write=lambda value, tensor=tensor: _write(tensor, value),  # type: ignore[misc]
            )

    def training(self) -> list[str]:
        """Modules that are in training mode although the whole was put into evaluation mode."""
        return [name or "the model" for name, m in self.module.named_modules() if m.training]

    @property
    def matching(self) -> Matching:
        if self._matching is None:
            weights = DeclaredWeights(self._checkpoint.tensors, PRECISIONS[self.dtype])
            self._matching = match(list(self.parameters()), self._checkpoint.config, weights)
        return self._matching

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        placed = {p.parameter: p for p in self.matching.placements}
        parameters = [
            (tensor, placed[name])
            for name, tensor in self.module.named_parameters()
            if name in placed
        ]
        batch, length = tokens.shape
        trace = SiteTrace(parameters, self._checkpoint.config, batch, length, visit)
        self._instrumented = trace
        try:
            with torch.no_grad(), trace:
                output = self._run(tokens)
            trace.finish()
        finally:
            self._instrumented = None
        value = to_numpy(output)
        visit("logits", value, trace.narrowest)
        return value

    @contextmanager
    def float64(self) -> Iterator[Port]:
        """The module in float64: each submodule's own parameters are widened while it runs.

        So at most one submodule is held in both formats. A module that reads another one's
        parameters directly is widened as a whole instead.
        """
        probe = np.zeros((1, min(2, self._checkpoint.config.n_ctx)), np.int64)
        for widen in (self._widen_each, self._widen_whole):
            with ExitStack() as stack:
                unread = stack.enter_context(widen())
                try:
                    self.logits(probe)
                except (RuntimeError, TypeError, PortError):
                    if widen == self._widen_whole:
                        raise
                    continue
                if unread:  # another module reads what these hold, and reads it in float32
                    continue
                yield self
                return

    @contextmanager
    def _widen_each(self) -> Iterator[set[torch.nn.Module]]:
        """Yields the modules that hold tensors and have not run yet."""
        undo: list[Callable[[], None]] = []
        unread: set[torch.nn.Module] = set()

        def enter(module: torch.nn.Module, *_: Any) -> None:
            unread.discard(module)
            undo.append(self._widen(module))

        def leave(*_: Any) -> None:
            undo.pop()()

        handles = []
        for module in self.module.modules():
            if any(True for _ in _own_tensors(module)):
                unread.add(module)
                handles.append(module.register_forward_pre_hook(enter, prepend=True))
                handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield unread
        finally:
            for handle in handles:
                handle.remove()
            while undo:
                undo.pop()()

    @contextmanager
    def _widen_whole(self) -> Iterator[set[torch.nn.Module]]:
        # One copy of what is shared: a tied head stays tied.
        copies: dict[Hashable, torch.Tensor] = {}
        undo = [self._widen(module, copies) for module in self.module.modules()]
        try:
            yield set()
        finally:
            for restore in undo:
                restore()

    def _widen(
        self, module: torch.nn.Module, copies: dict[Hashable, torch.Tensor] | None = None
    ) -> Callable[[], None]:
        """Replace a module's own floating tensors by float64 copies; returns what undoes it."""
        trace = self._instrumented
        copies = {} if copies is None else copies
        replaced: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = []
        for where, name, tensor in list(_own_tensors(module)):
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), type(tensor))
            if key not in copies:
                copies[key] = _widened(tensor)
            wide = copies[key]
            if trace is not None:
                trace.stands_for(wide, tensor)
            where[name] = wide
            replaced.append((where, name, tensor, wide))

        def restore() -> None:
            for where, name, tensor, wide in replaced:
                where[name] = tensor
                if trace is not None:
                    trace.forget(wide)

        return restore

    def _run(self, tokens: Tokens) -> torch.Tensor:
        ids = torch.as_tensor(np.ascontiguousarray(tokens, np.int64), device=self.device)
        output = logits_of(self._call(self.module, ids))
        if not isinstance(output, torch.Tensor):
            raise PortError(f"{self.name}: returned {type(output).__name__}, not logits")
        return output


def _write(tensor: torch.Tensor, value: Floats) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.array(value)))


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
        wide = tensor.detach().to(torch.float64)
    if isinstance(tensor, torch.nn.Parameter):
        wide = torch.nn.Parameter(wide, requires_grad=tensor.requires_grad)
    return wide


def _own_tensors(module: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """A module's own parameters and buffers, not its children's, that float64 would widen."""
    for where in (module._parameters, module._buffers):
        for name, tensor in where.items():
            if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64:
                yield where, name, tensor


def _declared(module: torch.nn.Module) -> Dtype:
    """The format of most parameters."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in module.parameters():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if not sizes:
        return "float32"
    most = max(sizes, key=lambda dtype: sizes[dtype])
    for name, dtype in _TORCH.items():
        if dtype == most:
            return name  # type: ignore[return-value]  # the keys are the Dtypes
    raise PortError(f"parameters are {most}; known are {', '.join(_TORCH)}")
