"""GPT's own files, as OpenAI published them, with one thing wrong: refused by name, in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_layouts import gpt1_published

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.errors import CheckpointError

SHAPES = "params_shapes.json"


def text(file: str, what: str) -> Callable[[Path], object]:
    return lambda directory: (directory / file).write_text(what)


def shapes(change: Callable[[list[Any]], object]) -> Callable[[Path], object]:
    def write(directory: Path) -> None:
        stated = json.loads((directory / SHAPES).read_text())
        change(stated)
        (directory / SHAPES).write_text(json.dumps(stated))

    return write


def array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def write(directory: Path) -> None:
        file = directory / "params_3.npy"
        np.save(file, change(np.load(file)))

    return write


def longer(directory: Path) -> None:
    with (directory / "params_3.npy").open("ab") as file:
        file.write(b"\0")


DAMAGE = {
    f"{SHAPES}: not JSON: ": text(SHAPES, "["),
    f"{SHAPES}: is not a list of shapes": text(SHAPES, "{}"),
    f"{SHAPES}: is not a list of shapes ": text(SHAPES, "[[7, 6], [11, 0]]"),
    f"{SHAPES}: has 25 shapes, should have two tables and 12 for each block": shapes(list.pop),
    f"{SHAPES}: has 2 shapes, should have two tables": text(SHAPES, "[[7, 6], [11, 6]]"),
    f"{SHAPES}: wrong shape: wte [11, 5] (should be [11, 6])": shapes(
        lambda stated: stated[1].__setitem__(1, 5)
    ),
    "params_3.npy: not an array of NumPy: ": text("params_3.npy", "zeros, and nothing else"),
    "params_3.npy: is float64[113], should be a row of float32": array(
        lambda value: value.astype(np.float64)
    ),
    "params_3.npy: is float32[1, 113], should be a row of float32": array(
        lambda value: value[None]
    ),
    "params_3.npy: has 581 bytes, which is not what its header says": longer,
    "params_9.npy: no such file": lambda directory: (directory / "params_9.npy").unlink(),
    "hparams.json: n_head = 3.0 is not an integer": text("hparams.json", '{"n_head": 3.0}'),
    "hparams.json: n_embd = 6 is not divisible by n_head = 4": text(
        "hparams.json", '{"n_head": 4}'
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_is_said(tmp_path: Path, what: str) -> None:
    gpt1_published(tmp_path, n_head=3)
    open_checkpoint(tmp_path)
    DAMAGE[what](tmp_path)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path)
    assert f"{refused.value} ".startswith(f"{tmp_path}/{what}")
