"""A port's own tensors under the checkpoint's names: read, rewritten, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import ToolError
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.matching.match import Placement
from gpt_verify.numerics.parallel import by_twos
from gpt_verify.port import Parameter
from gpt_verify.reference.weights import QKV, tensor_table

Array = NDArray[Any]
#: From a tensor's name and what the port held of it at first to what it is to hold.
Rewrite = Callable[[str, Array], Array]


class Stored:
    """A port's tensors, in the checkpoint's layout whatever the port's is.

    What the port has bit for bit as the checkpoint has it is taken from there again when it is put
    back, so that at most two tensors are held besides the port's own; only what differs is kept.
    """

    def __init__(self, subject: Subject) -> None:
        if subject.matching is None:
            raise NotExamined("no parameters shown")
        self._subject, self._matching = subject, subject.matching
        self._table = tensor_table(subject.config)
        self._by_name = {p.name: p for p in subject.parameters}
        self._doubtful: dict[str, bool] = {}
        #: Names of parameters that the checkpoint has bit for bit, and what the others held.
        self._equal: set[str] = set()
        self._kept: dict[str, Array] = {}
        self._written: dict[str, tuple[Parameter, Placement]] = {}

    def doubtful(self, tensor: str) -> bool:
        """Whether it may be another tensor, or lie otherwise, than it was matched as: all numbers
        alike, equal parts, equal to itself transposed. (That two different kinds of tensor hold the
        same other numbers does not happen.)

        Raises:
            NotExamined: the port has no parameter for it, or cannot be written to.
        """
        if tensor not in self._doubtful:
            pieces = [self._piece(*place) for place in self._places(tensor)]
            self._doubtful[tensor] = _doubtful(pieces)
        return self._doubtful[tensor]

    def original(self, tensor: str) -> Array:
        """What the port held at first, in the checkpoint's shape."""
        pieces = [self._piece(*place) for place in self._places(tensor)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Afterwards every bit is as before, and nothing is kept.

        Raises:
            ToolError: a parameter cannot be put back.
        """
        try:
            yield
        finally:
            self._restore()

    def held(self, tensor: str) -> Array:
        """What the port holds now, in the checkpoint's shape."""
        pieces = [
            self._laid(parameter.read(), placement) for parameter, placement in self._places(tensor)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)

    def rewrite(
        self, tensors: Iterable[str], how: Rewrite, of: Callable[[str], Array] | None = None
    ) -> None:
        """Write to the port what ``how`` makes of what it held at first.

        Args:
            tensors: which are written.
            how: as above.
            of: what ``how`` is given of each, in place of that.

        Raises:
            NotExamined: a parameter does not hold what was written to it.
        """
        remaining, of = list(tensors), of or self.original
        while remaining:
            # What two are to hold is computed side by side; a port is read and written by one.
            some, remaining = remaining[:2], remaining[2:]
            jobs = [partial(how, tensor, of(tensor)) for tensor in some]
            for tensor, value in zip(some, by_twos(jobs), strict=True):
                places = self._places(tensor)
                parts = np.split(value, len(places), axis=-1)
                for (parameter, placement), part in zip(places, parts, strict=True):
                    self._write(parameter, placement, placement.layout.to_port_layout(part))

    def _write(self, parameter: Parameter, placement: Placement, value: Array) -> None:
        dtype = self._original(parameter, placement).dtype
        value = np.ascontiguousarray(value, dtype).reshape(parameter.shape)
        assert parameter.write is not None, "places that cannot be written to are refused"
        self._written[parameter.name] = parameter, placement
        parameter.write(value)
        if not same_bits(parameter.read(), value):
            raise NotExamined(f"{parameter.name} does not hold what was written to it")

    def _restore(self) -> None:
        wrong = []
        for name, (parameter, placement) in self._written.items():
            original = self._original(parameter, placement)
            assert parameter.write is not None, "it was written to"
            parameter.write(original)
            if not same_bits(original, parameter.read()):
                wrong.append(name)
        self._written.clear()
        self._kept.clear()
        self._equal.clear()
        if wrong:
            raise ToolError(
                f"{self._subject.port.name}: {wrong[0]} does not hold what it held before it was "
                "written to"
            )

    def _places(self, tensor: str) -> list[tuple[Parameter, Placement]]:
        """The parameter that is the tensor, or the three that are its parts."""
        placed = [p for p in self._matching.placements if p.tensor == tensor and not p.head]
        placed.sort(key=lambda p: p.part or 0)
        if [p.part for p in placed] not in ([None], [*range(len(QKV))]):
            raise NotExamined(f"no parameter was matched to all of {tensor}")
        places = [(self._by_name[p.parameter], p) for p in placed]
        if any(parameter.write is None for parameter, _ in places):
            raise NotExamined("its weights cannot be written to")
        return places

    def _piece(self, parameter: Parameter, placement: Placement) -> Array:
        return self._laid(self._original(parameter, placement), placement)

    def _laid(self, value: Array, placement: Placement) -> Array:
        """A parameter's value as the checkpoint has it."""
        spec = self._table[placement.tensor]
        shape = spec.shape if placement.part is None else spec.part_shape
        return placement.layout.to_checkpoint_layout(value).reshape(shape)

    def _original(self, parameter: Parameter, placement: Placement) -> Array:
        """In the port's layout and format."""
        name = parameter.name
        if name in self._kept:
            return self._kept[name]
        if name in self._equal:
            return self._of_checkpoint(parameter, placement)
        held = np.ascontiguousarray(parameter.read())
        if placement.exact:
            expected = self._of_checkpoint(parameter, placement)
            if same_bits(held, expected):
                self._equal.add(name)
                return expected
        self._kept[name] = np.array(held)
        return self._kept[name]

    def _of_checkpoint(self, parameter: Parameter, placement: Placement) -> Array:
        laid = placement.expected(self._subject.weights)
        dtype = np.float64 if self._subject.port.dtype == "float64" else np.float32
        return np.ascontiguousarray(laid, dtype).reshape(parameter.shape)


def _doubtful(pieces: Sequence[Array]) -> bool:
    if sum(piece.size for piece in pieces) > 1:
        least = min(float(piece.min()) for piece in pieces)
        if least == max(float(piece.max()) for piece in pieces):
            return True
    square = [p for p in pieces if p.ndim == 2 and len(p) == p.shape[1] > 1 and p.any()]
    if any(_equal(piece, piece.T) for piece in square):
        return True
    return any(_equal(a, b) for i, a in enumerate(square) for b in square[:i])


def _equal(a: Array, b: Array) -> bool:
    """Compared in full only where the first row is equal."""
    return a.shape == b.shape and np.array_equal(a[:1], b[:1]) and np.array_equal(a, b)
