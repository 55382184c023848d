"""What the reference is made of, and whether it is still what it was.

A port runs in the process of its judge. One that replaces ``numpy.tanh``, or the function that
reads a checkpoint, changes what it is checked against, on purpose or by a library that does so.
That is noticed, by name, and put back, so that the next port is judged by what it should be.

Watched are the modules of this package and of NumPy that are loaded: their functions and classes,
the methods of the package's own classes, and its numbers. What is added is nobody's loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

PACKAGE, NUMPY = "gpt_verify", "numpy"
#: Modules that are looked at while a port runs, when it calls back: what computes the values.
_CORE = (
    NUMPY,
    *(f"{PACKAGE}.reference.{name}" for name in ("ops", "activations", "positions")),
    *(f"{PACKAGE}.reference.{name}" for name in ("experts", "branches", "model")),
)
_CONSTANTS = (int, float, str, tuple, frozenset)
#: ``(what has the attribute, its name, how it is called in a message)``, and what it was.
Place = tuple[Any, str, str]


class Watch:
    """A record of what the reference is made of now."""

    def __init__(self) -> None:
        modules = list(_modules())
        self._kept = [(place, value) for module in modules for place, value in _of(module)]
        core = {id(sys.modules[name]) for name in _CORE if name in sys.modules}
        self._core = [(place, value) for place, value in self._kept if id(place[0]) in core]
        self._seen: dict[str, None] = {}

    def glance(self) -> None:
        """Look at what computes the values, and remember what is another one: it may be put back
        before anybody else looks."""
        self._look(self._core)

    def replaced(self) -> list[str]:
        """Names of all that was replaced since; they are put back."""
        for owner, name, value in self._look(self._kept):
            setattr(owner, name, value)
        found, self._seen = list(self._seen), {}
        return found

    def _look(self, kept: list[tuple[Place, Any]]) -> list[tuple[Any, str, Any]]:
        found = []
        for (owner, name, called), value in kept:
            if _now(owner, name) is not value:
                found.append((owner, name, value))
                self._seen.setdefault(called)
        return found


def _now(owner: Any, name: str) -> Any:
    """What stands there, without asking a descriptor or a lazy module for it."""
    if isinstance(owner, FunctionType):
        return getattr(owner, name)
    return vars(owner).get(name)


def _modules() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in (PACKAGE, NUMPY) and isinstance(module, ModuleType):
            yield name, module


def _of(named: tuple[str, ModuleType]) -> Iterator[tuple[Place, Any]]:
    """Every attribute of a module that is watched, and its value."""
    where, module = named
    ours = where.partition(".")[0] == PACKAGE
    for name, value in list(vars(module).items()):
        called = f"{where}.{name}"
        constant = ours and name.isupper() and isinstance(value, _CONSTANTS)
        if callable(value) or constant:
            yield (module, name, called), value
        # What is imported from elsewhere is watched where it is defined.
        if ours and getattr(value, "__module__", None) == where:
            yield from _inside(value, called)


def _inside(value: Any, called: str) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, FunctionType):
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            yield (value, name, called), getattr(value, name)
    elif isinstance(value, type):
        for name, method in list(vars(value).items()):
            if callable(method) or isinstance(method, property | classmethod | staticmethod):
                yield (value, name, f"{called}.{name}"), method
                if isinstance(method, FunctionType):
                    yield from _inside(method, f"{called}.{name}")
