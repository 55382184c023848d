"""What depends on the checkpoint and not on the port, measured once for all ports of a run."""

from __future__ import annotations

from typing import Any
from weakref import finalize

from verify.checkpoint import Checkpoint

_KEPT: dict[int, dict[Any, Any]] = {}


def kept(checkpoint: Checkpoint) -> dict[Any, Any]:
    """A dictionary that lives as long as the checkpoint; each user has keys of its own."""
    if id(checkpoint) not in _KEPT:
        _KEPT[id(checkpoint)] = {}
        finalize(checkpoint, _KEPT.pop, id(checkpoint))
    return _KEPT[id(checkpoint)]
