"""Replacing one step of a model, so that a copy of the model has the fault as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from types import MethodType
from typing import Any


def replace(module: Any, method: str, function: Callable[..., Any]) -> None:
    """``function(module, …)`` in place of a method of this one module.

    Bound to it, and so to the copy where the module is copied deeply; a closure over the module's
    parameters would go on reading the original's.
    """
    setattr(module, method, MethodType(function, module))


def wrap(module: Any, method: str, function: Callable[..., Any]) -> None:
    """``function(module, right, …)`` in place of a method, where ``right(…)`` is what it was:
    another fault's, if that has been injected before."""
    before = getattr(module, method).__func__

    @wraps(before)  # the signature says what a model takes
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, partial(before, self), *args, **kwargs)

    replace(module, method, wrapped)
