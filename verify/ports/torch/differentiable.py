"""Derivatives of a module whose submodules are widened to float64 one by one.

A backward pass needs the matrices of the forward pass again. What autograd keeps of a widened one
is the narrow original, which is widened once more when its turn comes, so that at no time all
weights are held in float64. Nor are the derivatives: each is handed on as it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpt_verify.process.memory import LARGE_BYTES, give_back

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
            if narrow is None:
                return kept
            if kept.nbytes >= LARGE_BYTES:
                give_back()  # a table, when most that the passes have taken until now is free
            return wider(kept).as_strided(size, step, at)

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
