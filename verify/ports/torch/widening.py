"""A float64 that is one: modules that ask for float32 on the way get float64 as well.

Outside GPT-2, modules cast to float64 compute their norms, their softmax and their rotary tables in
float32 all the same, because their code says so, and the run then sits at float32's noise. A mode
of torch's dispatcher reads every such request and answers with float64. Tables that a module made
when it was built, and does not store with its weights, are right only where it is built under the
mode.

A request for a half format is no slip of precision made for safety, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Widening(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """Whatever is to be made in float32 is made in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(map(_wider, args))
        return func(*args, **{key: _wider(value) for key, value in (kwargs or {}).items()})


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


@contextmanager
def widening() -> Iterator[None]:
    """While it is open, float64 is the format of everything that asks for none or for float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Widening():
            yield
    finally:
        torch.set_default_dtype(default)


def in_float64(build: Callable[[], torch.nn.Module], weights: torch.nn.Module) -> torch.nn.Module:
    """A module built in float64, its tables as well, with the weights of another one.

    Args:
        build: makes a module of the same kind, whatever its weights.
        weights: what has the correct ones.
    """
    with widening():
        made = build().double()
    made.load_state_dict({name: value.double() for name, value in weights.state_dict().items()})
    return made.train(weights.training)
