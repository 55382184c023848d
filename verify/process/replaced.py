"""What the reference is made of, and whether it is still what it was.

A port runs in the process of its judge. One that replaces ``numpy.tanh``, or the function that
reads a checkpoint, changes what it is checked against, on purpose or by a library that does so.
That is noticed, by name, and put back, so that the next port is judged by what it should be.

Watched are the modules of this package and of NumPy that are loaded: their functions and classes,
the methods of the package's own classes, and its numbers. What is added is nobody's loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter, is_
from types import FunctionType, ModuleType
from typing import Any

PACKAGE, NUMPY = "gpt_verify", "numpy"
#: Modules that are looked at while a port runs, when it calls back: what computes the values.
_CORE = (
    NUMPY,
    *(f"{PACKAGE}.reference.{name}" for name in ("ops", "activations", "positions")),
    *(f"{PACKAGE}.reference.{name}" for name in ("experts", "branches", "model")),
)
_OF_A_FUNCTION = ("__code__", "__defaults__", "__kwdefaults__")
_PARTS = tuple(attrgetter(name) for name in _OF_A_FUNCTION)
_CONSTANTS = (int, float, str, tuple, frozenset)
#: ``(what has the attribute, its name, how it is called in a message)``, and what it was.
Place = tuple[Any, str, str]


@dataclass(frozen=True)
class _Listed:
    """A module, as it was when it was listed.

    Attributes:
        kept: its watched places, and what each was.
        named: it and its classes, each with the values of all its attributes.
        functions: of it and of its classes.
    """

    kept: tuple[tuple[Place, Any], ...]
    named: tuple[tuple[Any, tuple[Any, ...]], ...]
    functions: tuple[FunctionType, ...]


class _Group:
    """Modules that are looked at together: some ten thousand places, nearly always what they were.

    Attributes:
        modules: each as it was.
    """

    def __init__(self, modules: Iterable[_Listed]) -> None:
        self.modules = tuple(modules)
        self._named = [(vars(owner).values(), v) for m in self.modules for owner, v in m.named]
        self._functions = tuple(f for m in self.modules for f in m.functions)
        self._parts = [tuple(map(part, self._functions)) for part in _PARTS]

    def holds(self) -> bool:
        """Whether nothing was replaced; what was added since stands behind what was there."""
        for now, values in self._named:
            if len(now) < len(values) or not all(map(is_, now, values)):
                return False
        for part, values in zip(_PARTS, self._parts, strict=True):
            if not all(map(is_, map(part, self._functions), values)):
                return False
        return True

    def is_complete(self) -> bool:
        """Whether nothing was added either."""
        return self.holds() and all(len(now) == len(values) for now, values in self._named)


@dataclass(frozen=True)
class _Last:
    """What there was when a watch was last made.

    Attributes:
        modules: by name.
        all: every one of them, as it was.
        core: those that compute the values.
    """

    modules: dict[str, ModuleType]
    all: _Group
    core: _Group


#: The newest one. In a list, since this module is watched as well.
_last: list[_Last] = []


class Watch:
    """A record of what the reference is made of now."""

    def __init__(self) -> None:
        known = _as_it_is()
        self._all, self._core = known.all, known.core
        self._seen: dict[str, None] = {}

    def glance(self) -> None:
        """Look at what computes the values, and remember what is another one: it may be put back
        before anybody else looks."""
        self._look(self._core)

    def replaced(self) -> list[str]:
        """Names of all that was replaced since; they are put back."""
        for owner, name, value in self._look(self._all):
            setattr(owner, name, value)
        found, self._seen = list(self._seen), {}
        return found

    def _look(self, group: _Group) -> list[tuple[Any, str, Any]]:
        found: list[tuple[Any, str, Any]] = []
        if group.holds():
            return found
        for module in group.modules:
            for (owner, name, called), value in module.kept:
                if _now(owner, name) is not value:
                    found.append((owner, name, value))
                    self._seen.setdefault(called)
        return found


def _as_it_is() -> _Last:
    """What there is now: what there was the last time, where that is complete."""
    modules = dict(_modules())
    if not _last or _last[0].modules != modules or not _last[0].all.is_complete():
        listed = {name: _list(name, module) for name, module in modules.items()}
        core = _Group(listed[name] for name in _CORE if name in listed)
        _last[:] = [_Last(modules, _Group(listed.values()), core)]
    return _last[0]


def _list(name: str, module: ModuleType) -> _Listed:
    kept = tuple(_of(name, module))
    owners = {id(owner): owner for (owner, _, _), _ in kept}
    classes = (value for value in vars(module).values() if _is_own_class(value, name))
    return _Listed(
        kept,
        tuple((owner, tuple(vars(owner).values())) for owner in (module, *classes)),
        tuple(owner for owner in owners.values() if isinstance(owner, FunctionType)),
    )


def _is_own_class(value: Any, where: str) -> bool:
    return isinstance(value, type) and _is_ours(where) and value.__module__ == where


def _is_ours(where: str) -> bool:
    return where.partition(".")[0] == PACKAGE


def _now(owner: Any, name: str) -> Any:
    """What stands there, without asking a descriptor or a lazy module for it."""
    if isinstance(owner, FunctionType):
        return getattr(owner, name)
    return vars(owner).get(name)


def _modules() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in (PACKAGE, NUMPY) and isinstance(module, ModuleType):
            yield name, module


def _of(where: str, module: ModuleType) -> Iterator[tuple[Place, Any]]:
    """Every attribute of a module that is watched, and its value."""
    ours = _is_ours(where)
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
        for name in _OF_A_FUNCTION:
            yield (value, name, called), getattr(value, name)
    elif isinstance(value, type):
        for name, method in list(vars(value).items()):
            if callable(method) or isinstance(method, property | classmethod | staticmethod):
                yield (value, name, f"{called}.{name}"), method
                if isinstance(method, FunctionType):
                    yield from _inside(method, f"{called}.{name}")
