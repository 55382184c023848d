"""The weights of a Hugging Face directory, whichever file they are in.

In transformers' order of preference: ``model.safetensors``, ``model.safetensors.index.json`` with
its shards, ``pytorch_model.bin``. safetensors: README of huggingface/safetensors, "Format".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
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
    size_of,
)
from gpt_verify.errors import MissingDependency, shortened

SINGLE, SHARDED, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
#: The header of the 1558M model takes 60 kB.
LARGEST_HEADER = 1 << 24
#: safetensors' name of a type → NumPy's. What is not here keeps its own name, and is not read.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
CODES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
#: Types that become float32 without loss.
READABLE = tuple(CODES)


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
    if os.path.lexists(directory / SINGLE):
        return _Safetensors(directory / SINGLE, {directory / SINGLE: None})
    if os.path.lexists(directory / SHARDED):
        return _open_shards(directory / SHARDED)
    if os.path.lexists(directory / PICKLED):
        return _Pickled(directory / PICKLED)
    raise refusal(directory, f"no weights: none of {SINGLE}, {SHARDED}, {PICKLED}")


@dataclass
class _Place:
    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


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
            if expected is not None and (wrong := sorted(set(places) ^ expected)):
                what = f"has other tensors than {main.name} says"
                raise refusal(path, f"{what}: {listing(wrong)}")
            self._places.update(places)
        self.stored = {name: (place.dtype, place.shape) for name, place in self._places.items()}

    def bits(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        return place.file.view(place.offset, place.size)

    def read(self, name: str) -> NDArray[np.float32]:
        place = self._places[name]
        wide = _float32(self.bits(name).view(CODES[place.dtype]), place.dtype)
        wide.setflags(write=False)
        return wide.reshape(place.shape)

    def own(self, name: str) -> NDArray[np.float32]:
        place = self._places[name]
        bits = place.file.own(place.offset, place.size)
        return _float32(bits.view(CODES[place.dtype]), place.dtype).reshape(place.shape)


def _float32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Widen exactly; a view where it is float32 already."""
    return widen_bfloat16(array) if dtype == "bfloat16" else array.astype(np.float32, copy=False)


def _open_shards(index: Path) -> _Safetensors:
    """``weight_map``: tensor name → file beside the index."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise refusal(index, "has no weight_map")
    shards: dict[Path, set[str]] = {}
    for name, file in names.items():
        if not isinstance(file, str) or file in ("", ".", "..") or {*"/\\\0"} & {*file}:
            raise refusal(index, f"{name} is said to be in {file!r}, which is no file beside it")
        shards.setdefault(index.with_name(file), set()).add(name)
    return _Safetensors(index, shards)


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


class _Pickled:
    """``pytorch_model.bin``, through torch's loader that builds tensors and runs no code."""

    def __init__(self, path: Path) -> None:
        size_of(path)
        self.main = path
        self.files: tuple[Path, ...] = (path,)
        try:
            import torch
        except ImportError:
            raise MissingDependency(
                f"{path}: needs torch, which is not installed; {SINGLE} does not"
            ) from None
        try:
            with path.open("rb") as file:
                zipped = file.read(2) == b"PK"  # torch maps only its newer, zipped format
            with warnings.catch_warnings():  # about what is refused below
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # whatever a damaged pickle sets off
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise refusal(path, f"torch cannot load it: {shortened(first)}") from None
        if not isinstance(state, dict):
            raise refusal(path, f"holds a {type(state).__name__}, not a mapping of tensors")
        self.stored: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, value in state.items():
            if not isinstance(name, str):
                raise refusal(path, f"{name!r} is the name of a tensor, and no string")
            if not isinstance(value, torch.Tensor):
                raise refusal(path, f"{name!r} is a {type(value).__name__}, not a tensor")
            plain = value.layout is torch.strided and value.device.type == "cpu"
            if not plain or value.is_nested or value.is_quantized:
                raise refusal(path, f"{name} is not a plain tensor")
            self.stored[name] = (str(value.dtype).removeprefix("torch."), tuple(value.shape))
        self._state: dict[str, Any] = state

    def bits(self, name: str) -> NDArray[Any]:
        import torch

        flat = self._state[name].detach().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy()  # type: ignore[no-any-return]

    def read(self, name: str) -> NDArray[np.float32]:
        # A new array object on the same memory, so that torch's own stays as it is.
        array = self._state[name].detach().float().numpy().view()
        array.setflags(write=False)
        return array  # type: ignore[no-any-return]

    def own(self, name: str) -> NDArray[np.float32]:
        # torch maps the whole file at once, so that what is written to it would be written for all.
        return np.array(self.read(name))
