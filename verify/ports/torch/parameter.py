"""A parameter of a module, as a port shows it."""

from __future__ import annotations

import numpy as np
import torch

from gpt_verify.port import Floats, Index, Parameter
from gpt_verify.ports.torch.trace import to_numpy


def parameter_of(name: str, tensor: torch.Tensor, padding: bool = False) -> Parameter:
    """A tensor of a module, as a port shows it; it is read and written where it lies."""
    return Parameter(
        name,
        tuple(tensor.shape),
        lambda: to_numpy(tensor),
        (tensor.untyped_storage().data_ptr(), tensor.storage_offset()),
        write=lambda value: _write(tensor, value),
        padding=padding,
        read_at=lambda index: to_numpy(tensor[_torch(index)]),
        write_at=lambda index, value: _write_at(tensor, index, value),
    )


def _write(tensor: torch.Tensor, value: Floats) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.array(value)))


def _write_at(tensor: torch.Tensor, index: Index, value: Floats) -> None:
    with torch.no_grad():
        tensor[_torch(index)] = torch.from_numpy(np.array(value)).to(tensor)


def _torch(index: Index) -> tuple[torch.Tensor | slice, ...]:
    return tuple(
        at if isinstance(at, slice) else torch.from_numpy(np.ascontiguousarray(at)) for at in index
    )
