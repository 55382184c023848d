"""What a port in another process speaks: one question, one answer. See docs/other-languages.md.

The question is one line of JSON, ``{"tokens": [[15, 3], [8, 1]]}``: B rows of T ids.

The answer is logits [B, T, V], as one line of JSON, ``{"logits": [[[0.5, …], …], …]}``, or as a
``.npy`` array (NumPy Enhancement Proposal 1; versions 1 to 3), whichever is easier to write. Its
first byte tells which of the two it is. ``{"error": "too long"}`` refuses the question.
"""

from __future__ import annotations

import json
import math
from typing import Protocol

import numpy as np

from gpt_verify.errors import PortError, Refused, described, shortened
from gpt_verify.port import Floats, Tokens

#: Where the port's is not known: more than any model has.
LARGEST_VOCABULARY = 1 << 20
#: Bytes that one number may take. The longest of float64 that reads back has 24 characters; the
#: rest is for digits that nobody needs, and for the spaces that make JSON readable.
_NUMBER = 48
#: Bytes of the header of an array.
_BESIDE = 1 << 16
#: Bytes that any answer may have: one with too many logits is wrong, which is a finding about its
#: shape, as long as it can be read at no cost.
_LEAST = 1 << 24
_MAGIC = b"\x93NUMPY"


def question(tokens: Tokens) -> bytes:
    """tokens int[B, T] as one line, with its end."""
    return json.dumps({"tokens": np.asarray(tokens).tolist()}).encode() + b"\n"


def largest(tokens: Tokens, vocabulary: int) -> int:
    """Bytes that an answer to tokens int[B, T] may have. What is longer is no logits but something
    that prints without end, and is not read into memory to be told so."""
    return max(_LEAST, _BESIDE + _NUMBER * np.asarray(tokens).size * vocabulary)


class Stream(Protocol):
    """Blocks until there is something."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self, limit: int, /) -> bytes: ...


def answer(stream: Stream, name: str, most: int) -> Floats:
    """Read one answer from a stream and nothing beyond it.

    Args:
        stream: blocks until there is something.
        name: of the port, for messages.
        most: bytes that it may have (``largest``).

    Returns:
        Logits as they came; JSON's numbers as float64.

    Raises:
        Refused: the port said that it does not take the question.
        PortError: what came is no answer.
        EOFError: the stream ended before the answer did.
    """
    first = _exactly(stream, 1)
    if first == _MAGIC[:1]:
        return _array(stream, name, most)
    return _from_json(_line(stream, first, name, most), name)


def _array(stream: Stream, name: str, most: int) -> Floats:
    magic = _MAGIC[:1] + _exactly(stream, 7)
    if not magic.startswith(_MAGIC) or magic[6] not in (1, 2, 3):
        raise PortError(f"{name}: answered with {magic!r}, no .npy array of version 1, 2 or 3")
    wide = magic[6] > 1
    length = int.from_bytes(_exactly(stream, 4 if wide else 2), "little")
    if length > _BESIDE:
        raise PortError(f"{name}: answered with a .npy array whose header has {length} bytes")
    # NumPy parses it as it does a file's.
    import io

    header = io.BytesIO(length.to_bytes(4 if wide else 2, "little") + _exactly(stream, length))
    read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(header)
    except Exception as e:  # NumPy evaluates it, as Python's own parser does
        words = f"{name}: answered with a .npy array of unreadable header: {described(e)}"
        raise PortError(words) from None
    if dtype.kind != "f" or len(shape) != 3 or min(shape) < 0:
        found = shortened(f"{dtype}{list(shape)}")
        raise PortError(f"{name}: answered with {found}, should be a float array [B, T, V]")
    count = math.prod(shape) * dtype.itemsize
    if count > most:
        raise PortError(f"{name}: answered with an array of {count} bytes, more than {most}")
    flat = np.frombuffer(_exactly(stream, count), dtype)
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _from_json(line: bytes, name: str) -> Floats:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise PortError(f"{name}: answered {_shown(line)}, which is no JSON") from None
    if isinstance(said, dict) and "error" in said:
        raise Refused(f"{name}: {shortened(said['error'])}")
    if not isinstance(said, dict) or "logits" not in said:
        raise PortError(f'{name}: answered {_shown(line)}, should be {{"logits": …}}')
    try:
        return np.array(said["logits"], np.float64)
    except (TypeError, ValueError, OverflowError) as e:
        raise PortError(f"{name}: its logits are no array of numbers: {described(e)}") from None


def _line(stream: Stream, first: bytes, name: str, most: int) -> bytes:
    rest = stream.readline(most)
    if rest.endswith(b"\n"):
        return first + rest
    if len(rest) >= most:
        raise PortError(f"{name}: answered with a line of more than {most} bytes")
    raise EOFError


def _exactly(stream: Stream, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _shown(line: bytes) -> str:
    """Enough of a line to recognise it."""
    text = line[:80].decode(errors="replace").strip()
    return repr(text + ("…" if len(line) > 80 else ""))
