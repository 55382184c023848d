"""The weights of a Hugging Face directory, whichever file they are in.

In transformers' order of preference: ``model.safetensors``, ``model.safetensors.index.json`` with
its shards, ``pytorch_model.bin``, ``pytorch_model.bin.index.json`` with its own. safetensors:
README of huggingface/safetensors, "Format".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.files import (
    read_json,
    refusal,
)
from gpt_verify.checkpoint.hf_pickled import SINGLE, Pickled
from gpt_verify.checkpoint.hf_safetensors import Safetensors
from gpt_verify.checkpoint.links import need_within

SHARDED = "model.safetensors.index.json"
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
            return Safetensors(directory / name, shards)
        return Pickled(directory / name, shards)
    for name, advice in OTHERS.items():
        if os.path.lexists(directory / name):
            raise refusal(directory, f"has no weights but {name}, which is not read; {advice}")
    raise refusal(directory, f"no weights: none of {', '.join(_FILES)}")


_FILES = (SINGLE, SHARDED, PICKLED, PICKLED_SHARDS)


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
