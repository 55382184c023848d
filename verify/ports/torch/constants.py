"""Constants of one element, which ``.double()`` does not reach or cannot make more exact."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_verify.numerics.constants import stands_for
from gpt_verify.reference.config import Config

_HELD = (torch.float32, torch.float64)


class WidenedConstants(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """While a copy runs in float64, a constant that is kept in float32 is what it stands for.

    Attributes:
        others: the numbers that were met in the place of a constant and stand for none.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self.others: dict[float, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and len(args) > 1 and _wide(args):
            first = 1 if func._schema.is_mutable else 0
            args = (*args[:first], *(self._widened(x) for x in args[first:]))
        return func(*args, **(kwargs or {}))

    def _widened(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or x.numel() != 1 or x.dtype not in _HELD:
            return x
        value = float(x.detach())
        exact = stands_for(value, self._config)
        if exact is None:
            self.others[value] = None
            return x
        return torch.full(x.shape, exact, dtype=torch.float64, device=x.device)


def _wide(args: Any) -> bool:
    """Whether one of them is what the float64 copy computes with."""
    tensors = (x for x in args if isinstance(x, torch.Tensor))
    return any(x.dtype == torch.float64 and x.numel() > 1 for x in tensors)
