"""What a port in another process speaks: one question, one answer. See docs/other-languages.md.

The question is one line of JSON, ``{"tokens": [[15, 3], [8, 1]]}``: B rows of T ids.

The answer is logits [B, T, V], as one line of JSON, ``{"logits": [[[0.5, …], …], …]}``, or as a
``.npy`` array (NumPy Enhancement Proposal 1; versions 1 to 3), whichever is easier to write. Its
first byte tells which of the two it is. ``{"error": "too long"}`` refuses the question.
"""

from __future__ import annotations

import json
import math
from typing import BinaryIO

import numpy as np

from verify.errors import PortError
from verify.ports.port import Floats, Tokens

#: Longer answers are no logits, but a program that prints without end.
_LONGEST_BYTES = 1 << 34
_MAGIC = b"\x93NUMPY"


class Refused(PortError):
    """The port answered that it does not take the question."""


def question(tokens: Tokens) -> bytes:
    """tokens int[B, T] as one line, with its end."""
    return json.dumps({"tokens": np.asarray(tokens).tolist()}).encode() + b"\n"


def answer(stream: BinaryIO, name: str) -> Floats:
    """Read one answer from a stream and nothing beyond it.

    Args:
        stream: blocks until there is something.
        name: of the port, for messages.

    Returns:
        Logits as they came; JSON's numbers as float64.

    Raises:
        Refused: the port said that it does not take the question.
        PortError: what came is no answer.
        EOFError: the stream ended before the answer did.
    """
    first = _exactly(stream, 1)
    if first == _MAGIC[:1]:
        return _array(stream, name)
    return _from_json(_line(stream, first, name), name)


def _array(stream: BinaryIO, name: str) -> Floats:
    magic = _MAGIC[:1] + _exactly(stream, 7)
    if not magic.startswith(_MAGIC) or magic[6] not in (1, 2, 3):
        raise PortError(f"{name}: answered with {magic!r}, no .npy array of version 1, 2 or 3")
    wide = magic[6] > 1
    length = int.from_bytes(_exactly(stream, 4 if wide else 2), "little")
    # NumPy parses it as it does a file's.
    import io

    header = io.BytesIO(length.to_bytes(4 if wide else 2, "little") + _exactly(stream, length))
    read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(header)
    except ValueError as e:
        raise PortError(f"{name}: answered with a .npy array of unreadable header: {e}") from None
    if dtype.kind != "f" or len(shape) != 3:
        raise PortError(
            f"{name}: answered with {dtype}{list(shape)}, should be a float array [B, T, V]"
        )
    count = math.prod(shape) * dtype.itemsize
    if count > _LONGEST_BYTES:
        raise PortError(f"{name}: answered with an array of {count} bytes")
    flat = np.frombuffer(_exactly(stream, count), dtype)
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _from_json(line: bytes, name: str) -> Floats:
    try:
        said = json.loads(line)
    except ValueError:
        raise PortError(f"{name}: answered {_shown(line)}, which is no JSON") from None
    if isinstance(said, dict) and "error" in said:
        raise Refused(f"{name}: {said['error']}")
    if not isinstance(said, dict) or "logits" not in said:
        raise PortError(f'{name}: answered {_shown(line)}, should be {{"logits": …}}')
    try:
        return np.array(said["logits"], np.float64)
    except (TypeError, ValueError) as e:
        raise PortError(f"{name}: its logits are no array of numbers: {e}") from None


def _line(stream: BinaryIO, first: bytes, name: str) -> bytes:
    rest = stream.readline(_LONGEST_BYTES)
    if not rest.endswith(b"\n"):
        raise EOFError
    return first + rest


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _shown(line: bytes) -> str:
    """Enough of a line to recognise it."""
    text = line[:80].decode(errors="replace").strip()
    return repr(text + ("…" if len(line) > 80 else ""))
