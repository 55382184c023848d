"""The weights of a Hugging Face directory, whichever file they are in.

In transformers' order of preference: ``model.safetensors``, ``model.safetensors.index.json`` with
its shards, ``pytorch_model.bin``, ``pytorch_model.bin.index.json`` with its own. safetensors:
README of huggingface/safetensors, "Format".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.bundle import widen_bfloat16
from gpt_verify.checkpoint.files import (
    Malformed,
    MappedFile,
    listing,
    parse_json,
    read_json,
    refusal,
)
from gpt_verify.checkpoint.links import need_within
from gpt_verify.checkpoint.tensors import CODES, narrowed

SINGLE, SHARDED = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_SHARDS = "pytorch_model.bin", "pytorch_model.bin.index.json"
#: Files that have weights in a form that is not read, and how one that is comes out of them.
OTHERS = {
    "tf_model.h5": "transformers 4 converts it: from_pretrained(…, from_tf=True)"
    ".save_pretrained(…)",
    "flax_model.msgpack": "transformers 4 converts it: from_pretrained(…, from_flax=True)"
    ".save_pretrained(…)",
    "adapter_model.safetensors": "an adapter has no weights of the model's own: merge it into its "
    "base (peft: merge_and_unload()), and save that",
    "adapter_model.bin": "an adapter has no weights of the model's own: merge it into its base "
    "(peft: merge_and_unload()), and save that",
}
#: The header of the 1558M model takes 60 kB.
LARGEST_HEADER = 1 << 24
#: safetensors' name of a type → NumPy's. What is not here keeps its own name, and is not read.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


class Weights(Protocol):
    """Stored tensors by the file's own names.

    Attributes:
        main: the file to name when something is wrong with the whole.
        files: every file.
        stored: name → (type, shape).
    """

    main: Path
    files: tuple[Path, ...]
    stored: dict[str, tuple[str, tuple[int, ...]]]

    def bits(self, name: str) -> NDArray[Any]:
        """The bytes of a tensor, uint8[n]."""

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, read-only, of the stored shape."""

    def own(self, name: str) -> NDArray[np.float32]:
        """The same in memory that is the caller's to keep and to change."""


def open_weights(directory: Path) -> Weights:
    """The weights of a directory: names, types and shapes.

    Raises:
        CheckpointError: there are none, or a file is damaged, missing or leads elsewhere.
        MissingDependency: there is nothing but ``pytorch_model.bin``, and torch is not installed.
    """
    there = {name for name in _FILES if os.path.lexists(directory / name)}
    for name in (name for name in _FILES if name in there):
        need_within(directory, directory / name)
        shards: dict[Path, set[str] | None] = {directory / name: None}
        if name in (SHARDED, PICKLED_SHARDS):
            shards = {**_shards(directory / name)}
            need_within(directory, *shards)
        if name in (SINGLE, SHARDED):
            return _Safetensors(directory / name, shards)
        from gpt_verify.checkpoint.hf_pickled import Pickled

        return Pickled(directory / name, shards)
    for name, advice in OTHERS.items():
        if os.path.lexists(directory / name):
            raise refusal(directory, f"has no weights but {name}, which is not read; {advice}")
    raise refusal(directory, f"no weights: none of {', '.join(_FILES)}")


_FILES = (SINGLE, SHARDED, PICKLED, PICKLED_SHARDS)


@dataclass
class _Place:
    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def need_as_stated(
    main: Path, shard: Path, found: Iterable[str], expected: set[str] | None
) -> None:
    """CheckpointError where a shard has other tensors than the index says; None expects any."""
    if expected is not None and (wrong := sorted(set(found) ^ expected)):
        raise refusal(shard, f"has other tensors than {main.name} says: {listing(wrong)}")


class _Safetensors:
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


def _shards(index: Path) -> dict[Path, set[str]]:
    """``weight_map``: tensor name → file beside the index."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise refusal(index, "has no weight_map")
    shards: dict[Path, set[str]] = {}
    for name, file in names.items():
        if not isinstance(file, str) or file in ("", ".", "..") or {*"/\\\0"} & {*file}:
            raise refusal(index, f"{name} is said to be in {file!r}, which is no file beside it")
        shards.setdefault(index.with_name(file), set()).add(name)
    return shards


def _read_header(path: Path) -> dict[str, _Place]:
    """Where each tensor lies. The library judges the header; bfloat16 it cannot read for NumPy."""
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
