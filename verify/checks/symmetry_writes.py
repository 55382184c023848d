"""A port's own tensors under the checkpoint's names: read, rewritten, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reference.weights import tensor_table
from verify.checks.subject import NotExamined, Subject, same_bits
from verify.errors import PortError
from verify.matching import Placement
from verify.ports.port import Parameter

Array = NDArray[Any]
#: From a tensor's name and what the port held of it at first to what it is to hold.
Rewrite = Callable[[str, Array], Array]


class Write(Protocol):
    """Rewrites all tensors, or some of them."""

    def __call__(self, rewrite: Rewrite, only: Sequence[str] | None = None) -> None: ...


class Stored:
    """Some of a port's tensors, in the checkpoint's layout whatever the port's is.

    Args:
        subject: the port.
        tensors: the checkpoint's names.

    Raises:
        NotExamined: the port has no parameter for one of them, cannot be written to, or the layout
            cannot be told.
    """

    def __init__(self, subject: Subject, tensors: Sequence[str]) -> None:
        if subject.matching is None:
            raise NotExamined("no parameters shown")
        self._subject = subject
        self._table = tensor_table(subject.config)
        by_name = {p.name: p for p in subject.parameters}
        self._places: dict[str, list[tuple[Parameter, Placement]]] = {}
        for tensor in tensors:
            placed = [p for p in subject.matching.placements if p.tensor == tensor and not p.head]
            placed.sort(key=lambda p: p.part or 0)
            if [p.part for p in placed] not in ([None], [0, 1, 2]):
                raise NotExamined(f"no parameter was matched to all of {tensor}")
            self._places[tensor] = [(by_name[p.parameter], p) for p in placed]
            if any(parameter.write is None for parameter, _ in self._places[tensor]):
                raise NotExamined("its weights cannot be written to")
        #: What the parameters held when they were first read.
        self._originals: dict[str, Array] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def doubtful(self, tensor: str) -> bool:
        """Whether it may be another tensor, or lie otherwise, than it was matched as: all numbers
        alike, equal parts, equal to itself transposed. (That two different kinds of tensor hold the
        same other numbers does not happen.)"""
        whole = self.original(tensor)
        pieces = np.split(whole, len(self._places[tensor]), axis=-1)
        if whole.size > 1 and whole.min() == whole.max():
            return True
        square = [p for p in pieces if p.ndim == 2 and len(p) == p.shape[1] > 1 and p.any()]
        if any(_equal(piece, piece.T) for piece in square):
            return True
        return any(_equal(a, b) for i, a in enumerate(square) for b in square[:i])

    def original(self, tensor: str) -> Array:
        """What the port held at first, in the checkpoint's shape."""
        pieces = [self._piece(*place) for place in self._places[tensor]]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)

    @contextmanager
    def rewriting(self) -> Iterator[Write]:
        """Yields what rewrites all tensors, or some of them; afterwards every bit is as before.

        Raises:
            NotExamined: a parameter does not hold what was written to it.
            PortError: it cannot be put back.
        """
        try:
            yield self._rewrite
        finally:
            self._restore()

    def _rewrite(self, rewrite: Rewrite, only: Sequence[str] | None = None) -> None:
        for tensor, places in self._places.items():
            if only is not None and tensor not in only:
                continue
            value = rewrite(tensor, self.original(tensor))
            parts = np.split(value, 3, axis=-1) if len(places) == 3 else [value]
            for (parameter, placement), part in zip(places, parts, strict=True):
                self._write(parameter, part.T if placement.transposed else part)

    def _write(self, parameter: Parameter, value: Array) -> None:
        original = self._original(parameter)
        value = np.ascontiguousarray(value).reshape(original.shape).astype(original.dtype)
        assert parameter.write is not None, "that was asked at first"
        parameter.write(value)
        if not np.array_equal(parameter.read(), value, equal_nan=True):
            raise NotExamined(f"{parameter.name} does not hold what was written to it")

    def _restore(self) -> None:
        for places in self._places.values():
            for parameter, _ in places:
                original = self._originals.pop(parameter.name, None)
                if original is None:
                    continue
                assert parameter.write is not None, "that was asked at first"
                parameter.write(original)
                if not same_bits(original, np.ascontiguousarray(parameter.read())):
                    raise PortError(
                        f"{self._subject.port.name}: {parameter.name} does not hold what it held "
                        "before it was written to"
                    )

    def _piece(self, parameter: Parameter, placement: Placement) -> Array:
        shape = self._table[placement.tensor].shape
        if placement.part is not None:
            shape = (*shape[:-1], shape[-1] // 3)
        value = self._original(parameter)
        return value.reshape(shape[::-1]).T if placement.transposed else value.reshape(shape)

    def _original(self, parameter: Parameter) -> Array:
        if parameter.name not in self._originals:
            self._originals[parameter.name] = np.array(parameter.read(), order="C")
        return self._originals[parameter.name]


def _equal(a: Array, b: Array) -> bool:
    """Compared in full only where the first row is equal."""
    return a.shape == b.shape and np.array_equal(a[:1], b[:1]) and np.array_equal(a, b)
