"""The checkpoint's tensors as a port in a given precision would hold them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from threading import RLock
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.recording import Recording

Array = NDArray[np.floating]

Rows = NDArray[np.int64] | slice

#: Elements that are rounded at once.
TILE = 1 << 20
#: What is as large as the vocabulary or the context.
TABLES = ("wte", "wpe", "lm_head")


@runtime_checkable
class ByRows(Protocol):
    """Weights of which some rows can be had without the others."""

    def rows(self, name: str, rows: Rows) -> Array: ...


class DeclaredWeights(Mapping[str, Array]):
    """Checkpoint tensors after the declared cast, rounded when they are looked up.

    The last few are kept, because one operation asks for its matrix more than once (the local
    comparison, the oracle's forward pass, the floor). ``keep_bytes`` bounds what they take.

    Attributes:
        tensors: of the checkpoint, before the cast.
        recording: of the oracle's runs with them; None where each is needed once.
        memo: what the laws have measured with them, for the next law and the next port; each
            has keys of its own.
    """

    def __init__(
        self, tensors: Mapping[str, Array], precision: Precision, keep_bytes: int = 24 << 20
    ) -> None:
        self.tensors = tensors
        self._precision = precision
        self._keep_bytes = keep_bytes
        self.recording: Recording | None = None
        self.memo: dict[Any, Any] = {}
        self._kept: OrderedDict[tuple[str, type], Array] = OrderedDict()
        # The oracle's two runs ask from two threads; a tensor of float64 asks for the float32 one.
        self._lock = RLock()

    def __getitem__(self, name: str) -> Array:
        """The tensor in float32, every value a number of the declared format."""
        if self._exact:
            return self.tensors[name]
        return self._keep((name, np.float32), lambda: self._rounded(self.tensors[name]))

    def rows(self, name: str, rows: Rows) -> Array:
        """Some rows of a tensor, without rounding the others."""
        tensors = self.tensors
        taken = tensors.rows(name, rows) if isinstance(tensors, ByRows) else tensors[name][rows]
        return taken if self._exact else self._precision.round(taken)

    def float64(self, name: str) -> Array:
        """The same, widened for the arithmetic."""
        return self._keep((name, np.float64), lambda: self[name].astype(np.float64))

    def in_dtype(self, name: str, dtype: type[np.floating]) -> Array:
        """The tensor in the format of the arithmetic, float32 or float64."""
        return self.float64(name) if dtype is np.float64 else np.asarray(self[name])

    def forget(self) -> None:
        """Let go of the tensors that were kept: something large comes next."""
        with self._lock:
            self._kept.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def _exact(self) -> bool:
        """The format holds every number of the checkpoint."""
        return self._precision.name in ("float32", "float64")

    def _rounded(self, value: Array) -> Array:
        """Round tile by tile: rounding takes several times the memory of what it rounds."""
        made = np.empty(value.shape, np.float32)
        flat, rounded = value.reshape(-1), made.reshape(-1)
        for start in range(0, flat.size, TILE):
            tile = slice(start, start + TILE)
            rounded[tile] = self._precision.round(flat[tile])
        return made

    def _keep(self, key: tuple[str, type], make: Callable[[], Array]) -> Array:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            value = make()
            self._kept[key] = value
            while (
                sum(a.nbytes for a in self._kept.values()) > self._keep_bytes
                and len(self._kept) > 1
            ):
                self._kept.popitem(last=False)
            return value


class SharedWeights:
    """The same ``DeclaredWeights`` for every port of one precision, with what was measured with
    them.

    Args:
        record: whether the oracle's runs are kept for the next port.
    """

    def __init__(self, tensors: Mapping[str, Array], record: bool) -> None:
        self._tensors, self._record = tensors, record
        self._made: dict[str, DeclaredWeights] = {}

    def __call__(self, precision: Precision) -> DeclaredWeights:
        made = self._made.get(precision.name)
        if made is None:
            made = self._made[precision.name] = DeclaredWeights(self._tensors, precision)
            made.recording = Recording() if self._record else None
        return made

    def forget(self) -> None:
        """Let go of what was measured: the next port has it measured anew."""
        self._made.clear()


class Widened(Mapping[str, Array]):
    """View of ``DeclaredWeights`` for the oracle: matrices in float64, tables as they are.

    The embedding tables stay in float32, because the oracle takes rows before it converts.
    """

    def __init__(self, declared: DeclaredWeights) -> None:
        self._declared = declared

    def __getitem__(self, name: str) -> Array:
        return self._declared[name] if name in TABLES else self._declared.float64(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)
