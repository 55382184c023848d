"""What a port is handed: tensors that are its own, to keep and to change.

The reference reads the same checkpoint after the port was built, and must read what the file says,
whatever the port has done. So no array that a port is handed shares memory with one that the
reference reads. Nothing is copied for it where the source can map a file anew, copy-on-write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.record import Checkpoint, Tensors

Array = NDArray[np.float32]


@runtime_checkable
class Owning(Protocol):
    """Tensors that know a cheaper way than a copy."""

    def own(self, name: str) -> Array:
        """A tensor in writable memory that nobody else has."""


class Handed(Mapping[str, Array]):
    """The tensors of a checkpoint as one port has them.

    As long as anything made from a tensor is in use, another look-up of it is the same memory: a
    head that is looked up as ``wte`` is tied. After that it is read anew, as the file has it.
    """

    def __init__(self, source: Tensors) -> None:
        self._source = source
        self._given: WeakValueDictionary[str, NDArray[Any]] = WeakValueDictionary()
        self._kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._taken: set[str] = set()

    def taken(self) -> tuple[int, int]:
        """How many tensors have been looked up, and how many there are."""
        return len(self._taken), len(self)

    def __getitem__(self, name: str) -> Array:
        self._taken.add(name)
        memory = self._given.get(name)
        if memory is None:
            made = self._own(name)
            memory = self._given[name] = _memory_of(made)
            self._kinds[name] = made.shape, made.dtype
        # A new view, because views of a view refer to its memory and not to itself.
        return np.ndarray(*self._kinds[name], memory)

    def _own(self, name: str) -> Array:
        """The copy is in C order, and begins at the first byte of its memory."""
        if isinstance(self._source, Owning):
            return np.ascontiguousarray(self._source.own(name))
        return np.array(self._source[name], order="C")

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def _memory_of(array: NDArray[Any]) -> NDArray[Any]:
    """The array that lives as long as any view of it."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def handed_out(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint for one port."""
    return replace(checkpoint, tensors=Handed(checkpoint.tensors))
