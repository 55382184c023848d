"""What is measured once and used again: by several ports of a run, or by several laws of one."""

from __future__ import annotations

from typing import Any
from weakref import finalize

_KEPT: dict[int, dict[Any, Any]] = {}


def kept(owner: object) -> dict[Any, Any]:
    """A dictionary that lives as long as its owner (a checkpoint, its weights, a port, a subject);
    each user has keys of its own."""
    if id(owner) not in _KEPT:
        _KEPT[id(owner)] = {}
        finalize(owner, _KEPT.pop, id(owner))
    return _KEPT[id(owner)]
