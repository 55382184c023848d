"""A float64 that is one: modules that ask for float32 on the way get float64 as well.

Outside GPT-2, modules cast to float64 compute their norms, their softmax and their rotary tables in
float32 all the same, because their code says so, and the run then sits at float32's noise. A mode
of torch's dispatcher reads every such request and answers with float64. Tables that a module made
when it was built, and does not store with its weights, are right only where it is built under the
mode.

A request for a half format is no slip of precision made for safety, and is left as it is. What
comes from elsewhere (NumPy, a table that is shared by all modules) is not reached either:
``only_wide`` refuses a run in which its digits are too few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_verify.port import NotExamined
from gpt_verify.ports.torch.roles import address


class Widening(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """Whatever is to be made in float32 is made in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.view.dtype:  # the bytes of a file, say, which are what they are
            return func(*args, **(kwargs or {}))
        args = tuple(map(_wider, args))
        return func(*args, **{key: _wider(value) for key, value in (kwargs or {}).items()})


_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def _wider(argument: Any) -> Any:
    return _WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument


class _OnlyWide(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """See ``only_wide``."""

    def __init__(self, exact: frozenset[int]) -> None:
        super().__init__()
        self._exact = exact

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        results = made if isinstance(made, tuple | list) else (made,)
        if any(isinstance(x, torch.Tensor) and x.dtype in _WIDE for x in results):
            for x in args:
                if not isinstance(x, torch.Tensor) or not _is_narrow(x):
                    continue
                if address(x) not in self._exact and not _is_short(x):
                    kind = str(x.dtype).removeprefix("torch.")
                    raise NotExamined(
                        f"{list(x.shape)} in {kind} is computed with, which its factory does not "
                        "make in float64 when torch's default is float64"
                    )
        return made


_WIDE = (torch.float64, torch.complex128)
#: Of the numbers with so few binary digits (1, 0.5, 16) every format has each.
_SHORT_DIGITS = 8


def _is_narrow(x: torch.Tensor) -> bool:
    return (x.is_floating_point() or x.is_complex()) and x.dtype not in _WIDE


def _is_short(x: torch.Tensor) -> bool:
    """Whether every element is what was meant, whatever the format: short, infinite, or the least
    number of a format, with which a mask hides."""
    values = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    finite = values[values.isfinite() & (values != torch.finfo(values.dtype).min)].double()
    scaled = torch.frexp(finite).mantissa * 2**_SHORT_DIGITS
    return bool((scaled == scaled.round()).all())


@contextmanager
def only_wide(module: torch.nn.Module) -> Iterator[None]:
    """While it is open, a float64 result of a narrower number that rounding may have changed is
    refused.

    Args:
        module: whose parameters are what they should be in whatever format.

    Raises:
        NotExamined: there was one.
    """
    with _OnlyWide(frozenset(map(address, module.parameters()))):
        yield


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
    build: Callable[[], torch.nn.Module], weights: torch.nn.Module, *, loads: bool = False
) -> torch.nn.Module:
    """A module built in float64, its tables as well, on the very memory of another one's
    parameters, which are to be widened while they are used: it holds no second copy of them.

    Args:
        build: makes a module of the same kind, whatever its weights.
        weights: what has the correct ones.
        loads: whether it makes them with all that is stored, as a user's factory does. Then its
            buffers are left as they are made, and otherwise they are those of ``weights``.

    Raises:
        RuntimeError: the two have other names, or other shapes.
    """
    # A user's code may write to a parameter that it has made, and look at what it wrote.
    with widening(), nullcontext() if loads else _no_parameters():
        made = build()
    theirs = dict(weights.named_parameters(remove_duplicate=False))
    _same(made, weights)
    lent = {id(t): torch.nn.Parameter(t.detach(), t.requires_grad) for t in theirs.values()}
    for name in dict(made.named_parameters(remove_duplicate=False)):
        scope, _, leaf = name.rpartition(".")
        made.get_submodule(scope)._parameters[leaf] = lent[id(theirs[name])]
    for buffer in made.buffers() if not loads else ():
        if buffer.is_floating_point():
            buffer.data = buffer.double()
    stored = weights.state_dict()
    for name, value in made.state_dict(keep_vars=True).items() if not loads else ():
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
