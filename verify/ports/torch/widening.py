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
from torch.nn.modules.module import register_module_parameter_registration_hook
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


def on_weights_of(
    build: Callable[[], torch.nn.Module], weights: torch.nn.Module
) -> torch.nn.Module:
    """A module built in float64, its tables as well, on the very memory of another one's
    parameters, which are to be widened while they are used: it holds no second copy of them.

    Args:
        build: makes a module of the same kind, whatever its weights.
        weights: what has the correct ones.

    Raises:
        RuntimeError: the two have other names, or other shapes.
    """
    with widening(), _no_parameters():
        made = build()
    theirs = dict(weights.named_parameters(remove_duplicate=False))
    _same(made, weights)
    lent = {id(t): torch.nn.Parameter(t.detach(), t.requires_grad) for t in theirs.values()}
    for name in dict(made.named_parameters(remove_duplicate=False)):
        scope, _, leaf = name.rpartition(".")
        made.get_submodule(scope)._parameters[leaf] = lent[id(theirs[name])]
    for buffer in made.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.double()
    stored = weights.state_dict()
    for name, value in made.state_dict(keep_vars=True).items():
        if name not in theirs and isinstance(value, torch.Tensor):
            value.copy_(stored[name])
    return made.train(weights.training)


@contextmanager
def _no_parameters() -> Iterator[None]:
    """Parameters of what is built have a shape and no memory: others take their place."""

    def shape_alone(module: Any, name: str, made: Any) -> torch.nn.Parameter | None:
        if made is None or made.is_meta:  # a second name of one that was seen stays that
            return None
        return torch.nn.Parameter(made.detach().to("meta"), made.requires_grad)

    handle = register_module_parameter_registration_hook(shape_alone)
    try:
        yield
    finally:
        handle.remove()


def _same(made: torch.nn.Module, weights: torch.nn.Module) -> None:
    """RuntimeError where what the two store has other names or shapes."""
    ours, theirs = (
        {name: tuple(getattr(v, "shape", ())) for name, v in module.state_dict().items()}
        for module in (made, weights)
    )
    if ours != theirs:
        name = next(n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n))
        raise RuntimeError(
            f"{name} is {ours.get(name, 'not there')} in a module that is built anew, should be "
            f"{theirs.get(name, 'not there')}"
        )
