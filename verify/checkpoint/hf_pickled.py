"""``pytorch_model.bin``, whole or in shards, through torch's loader that builds tensors alone.

What a pickle asks for beside tensors is code of whoever wrote it. It is named and never run, and
torch's own advice, to load it all the same, is not passed on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.files import LARGEST_POINTER, need_content, refusal, size_of
from gpt_verify.checkpoint.tensors import narrowed, need_as_stated
from gpt_verify.errors import MissingDependency, shortened
from gpt_verify.text import listing

#: What has no code in it.
SINGLE = "model.safetensors"


class Pickled:
    """One or several files.

    Args:
        main: the single file, or the index.
        shards: file → the names that it must have; None: whatever it has.
    """

    def __init__(self, main: Path, shards: Mapping[Path, set[str] | None]) -> None:
        self.main = main
        self.files = tuple(shards) if main in shards else (main, *shards)
        self._state: dict[str, Any] = {}
        self._file: dict[str, Path] = {}
        for path, expected in shards.items():
            state = _load(path)
            need_as_stated(main, path, state, expected)
            self._state.update(state)
            self._file.update(dict.fromkeys(state, path))
        self.stored = {
            name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
            for name, value in self._state.items()
        }

    def bits(self, name: str) -> NDArray[Any]:
        import torch

        flat = self._state[name].detach().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy()  # type: ignore[no-any-return]

    def read(self, name: str) -> NDArray[np.float32]:
        import torch

        value = self._state[name].detach()
        wide = value if value.dtype == torch.float64 else value.float()
        # A new array object on the same memory, so that torch's own stays as it is.
        array = narrowed(self._file[name], name, wide.numpy()).view()
        array.setflags(write=False)
        return array

    def own(self, name: str) -> NDArray[np.float32]:
        # torch maps the whole file at once, so that what is written to it would be written for all.
        return np.array(self.read(name))


def _load(path: Path) -> dict[str, Any]:
    """Name → tensor of one file."""
    size_of(path)
    try:
        with path.open("rb") as file:
            start = file.read(LARGEST_POINTER)
    except OSError as error:
        raise refusal(path, f"cannot be read: {error}") from None
    need_content(path, start)
    try:
        import torch
    except ImportError:
        raise MissingDependency(
            f"{path}: needs torch, which is not installed; {SINGLE} does not"
        ) from None
    zipped = start.startswith(b"PK")  # torch maps only its newer, zipped format
    try:
        with warnings.catch_warnings():  # about what is refused below
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever a damaged pickle sets off
        raise refusal(path, _why_not(path, error)) from None
    if not isinstance(state, dict):
        raise refusal(path, f"holds a {type(state).__name__}, not a mapping of tensors")
    for name, value in state.items():
        if not isinstance(name, str):
            raise refusal(path, f"{name!r} is the name of a tensor, and no string")
        if not isinstance(value, torch.Tensor):
            raise refusal(path, f"{name!r} is a {type(value).__name__}, not a tensor")
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.is_quantized:
            raise refusal(path, f"{name} is not a plain tensor")
    return state


def _why_not(path: Path, error: Exception) -> str:
    """What torch could not load, without what it advises."""
    import pickle

    import torch

    if not isinstance(error, pickle.UnpicklingError):
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return f"torch cannot load it: {shortened(first)}"
    try:
        code = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zipped file, or one that is damaged
        code = []
    if code:
        return (
            f"is more than tensors: it asks for {listing(sorted(code))}, which would run code and "
            f"is not loaded; save the tensors of its state_dict() as {SINGLE}"
        )
    return (
        "torch's loader of tensors cannot load it: it is damaged, or more than tensors; save the "
        f"tensors of its state_dict() as {SINGLE}"
    )
