"""Write a safetensors file, one tensor in memory at a time.

It is written by hand because the library's ``save_file`` wants every tensor at once, which for the
1558M model is the whole 6 GB. The layout (8 bytes of header length, JSON header, raw little-endian
data) is the one in the README of huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ToWrite:
    """A tensor under the name that it is to have; ``make`` is called once, when it is its turn."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[np.float32]]


def write_tensors(file: BinaryIO, tensors: Sequence[ToWrite]) -> None:
    """All of them, in this order, as float32."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + 4 * math.prod(tensor.shape)
        header[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        file.write(np.ascontiguousarray(tensor.make(), "<f4").data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is complete, and is gone if it never is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
