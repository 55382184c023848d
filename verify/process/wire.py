"""Messages between two of our processes: a length, a JSON header, and the bytes of arrays.

The header says of each array its dtype and shape; the arrays follow raw, little-endian. Reading a
frame runs no code (as reading a pickle does), and large arrays are never copied on the way:
``multiprocessing.connection`` puts what it receives together in a buffer of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview

_PREFIX = struct.Struct("<4sI")
_MAGIC = b"gvf1"
#: Far above any header: what is longer is no frame but stray output in the stream.
_LONGEST_HEADER = 1 << 24


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes:
        kind: ``request``, ``item``, ``end`` or ``error``.
        id: number of the request that it belongs to.
        fields: whatever JSON can hold, by name.
        arrays: of booleans, integers or floats.
    """

    kind: str
    id: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: tuple[Array, ...] = ()


def encode(frame: Frame) -> list[Buffer]:
    """The bytes of a frame, in pieces; contiguous little-endian arrays are not copied.

    Raises:
        ValueError: an array of objects, or of a type that NumPy does not have by itself.
    """
    arrays = [_little_endian(array) for array in frame.arrays]
    header = json.dumps(
        {
            "kind": frame.kind,
            "id": frame.id,
            "fields": dict(frame.fields),
            "arrays": [[array.dtype.str, array.shape] for array in arrays],
        }
    ).encode()
    start = _PREFIX.pack(_MAGIC, len(header)) + header
    return [start, *(array.reshape(-1).view(np.uint8).data for array in arrays if array.size)]


def send(stream: IO[bytes], buffers: Sequence[Buffer]) -> None:
    """Write the pieces to an unbuffered stream, which may take less than it is given at a time."""
    for buffer in buffers:
        rest = memoryview(buffer)
        while rest:
            rest = rest[stream.write(rest) :]


def receive(stream: IO[bytes]) -> Frame:
    """Read one frame from an unbuffered stream, each array straight into its own memory.

    Raises:
        EOFError: the stream ended.
        ValueError: the bytes are no frame.
    """
    magic, length = _PREFIX.unpack(_fill(stream, bytearray(_PREFIX.size)))
    if magic != _MAGIC or length > _LONGEST_HEADER:
        raise ValueError(f"not a frame: {magic!r}")
    header = json.loads(bytes(_fill(stream, bytearray(length))))
    arrays = []
    for dtype, shape in header["arrays"]:
        array = np.empty(shape, _plain(np.dtype(dtype)))
        if array.size:
            _fill(stream, array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return Frame(header["kind"], header["id"], header["fields"], tuple(arrays))


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in "biuf":
        raise ValueError(f"arrays of {dtype} cannot be sent between processes")
    return dtype


def _little_endian(array: Array) -> Array:
    dtype = _plain(array.dtype).newbyteorder("<")
    # Not ascontiguousarray: that would turn a scalar into a vector.
    return np.asarray(array, dtype, order="C")


def _fill(stream: IO[bytes], buffer: bytearray | memoryview) -> bytearray | memoryview:
    rest = memoryview(buffer)
    while rest:
        count = stream.readinto(rest)  # type: ignore[attr-defined]  # raw streams have it
        if not count:
            raise EOFError("the stream ended")
        rest = rest[count:]
    return buffer
