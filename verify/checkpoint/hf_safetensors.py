"""Weights in safetensors: README of huggingface/safetensors, "Format"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.bundle import widen_bfloat16
from gpt_verify.checkpoint.files import Malformed, MappedFile, parse_json, refusal
from gpt_verify.checkpoint.tensors import CODES, narrowed, need_as_stated

#: The header of the 1558M model takes 60 kB.
LARGEST_HEADER = 1 << 24
#: safetensors' name of a type → NumPy's. What is not here keeps its own name, and is not read.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass
class _Place:
    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Safetensors:
    """One or several safetensors files.

    Args:
        main: the single file, or the index.
        shards: file → the names that it must have; None: whatever it has.
    """

    def __init__(self, main: Path, shards: Mapping[Path, set[str] | None]) -> None:
        self.main = main
        self.files = tuple(shards) if main in shards else (main, *shards)
        self._places: dict[str, _Place] = {}
        for path, expected in shards.items():
            places = _read_header(path)
            need_as_stated(main, path, places, expected)
            self._places.update(places)
        self.stored = {name: (place.dtype, place.shape) for name, place in self._places.items()}

    def bits(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        return place.file.view(place.offset, place.size)

    def read(self, name: str) -> NDArray[np.float32]:
        place = self._places[name]
        wide = self._float32(name, self.bits(name))
        wide.setflags(write=False)
        return wide.reshape(place.shape)

    def own(self, name: str) -> NDArray[np.float32]:
        place = self._places[name]
        bits = place.file.own(place.offset, place.size)
        return self._float32(name, bits).reshape(place.shape)

    def _float32(self, name: str, bits: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Widened exactly, or rounded from float64; a view where it is float32 already."""
        place = self._places[name]
        if place.dtype == "bfloat16":
            return widen_bfloat16(bits.view(CODES[place.dtype]))
        return narrowed(place.file.path, name, bits.view(CODES[place.dtype]))


def _read_header(path: Path) -> dict[str, _Place]:
    """The header says where each tensor lies. The library judges it, but cannot read bfloat16 for
    NumPy."""
    from safetensors import safe_open

    file = MappedFile(path)
    if file.size < 8:
        raise refusal(path, f"{file.size} bytes; the length of the header alone has 8")
    length = int.from_bytes(file.view(0, 8).tobytes(), "little")
    if length > min(LARGEST_HEADER, file.size - 8):
        raise refusal(path, f"claims a header of {length} bytes in a file of {file.size}")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except Exception as error:  # SafetensorError, or an OSError from below
        raise refusal(path, f"not a safetensors file, or damaged: {error}") from None
    try:
        header = parse_json(file.view(8, length).tobytes())
    except Malformed as error:
        raise refusal(path, f"header: {error}") from None
    header.pop("__metadata__", None)
    places = {}
    for name, stored in header.items():
        assert isinstance(stored, dict)  # the library has seen to it
        start, end = stored["data_offsets"]
        dtype = DTYPES.get(stored["dtype"], str(stored["dtype"]))
        shape = tuple(stored["shape"])
        places[name] = _Place(file, dtype, shape, 8 + length + start, end - start)
    return places
