"""Read GPT as OpenAI published it: openai/finetune-transformer-lm, ``model/``.

The files:

    params_shapes.json                         the shape of each tensor, in their order
    params_0.npy … params_9.npy                the numbers of all of them, one after the other
    encoder_bpe_40000.json, vocab_40000.bpe    the tokenizer, which is not read

The order and the way of cutting are those of its ``train.py``, lines 396 to 402: the table of
positions, the table of tokens, then the variables of each block as its functions make them. Where a
file ends says nothing: a tensor may begin in one and end in the next.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.files import LARGEST_JSON, MappedFile, read_bytes, read_json, refusal
from gpt_verify.checkpoint.keys import need_present, stated
from gpt_verify.checkpoint.links import need_within
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.checkpoint.tensors import LazyTensors
from gpt_verify.reference import Config, ConfigError, tensor_table

SHAPES, PARTS = "params_shapes.json", 10
#: ``train.py``: block, attn, mlp, norm and conv1d, in the order in which they make variables.
BLOCK = (
    *("attn/c_attn/w", "attn/c_attn/b", "attn/c_proj/w", "attn/c_proj/b", "ln_1/g", "ln_1/b"),
    *("mlp/c_fc/w", "mlp/c_fc/b", "mlp/c_proj/w", "mlp/c_proj/b", "ln_2/g", "ln_2/b"),
)
#: Channels of a head: 768 / 12. The number of heads is an argument of ``train.py``, and in no file.
HEAD_SIZE = 64
#: Of the header of an array: NumPy's own limit.
LARGEST_HEADER = 10_000


def open_checkpoint(path: str | Path, ignore: Collection[str] = ()) -> Checkpoint:
    """Open the directory; tensors are read when they are looked up.

    A looked-up tensor is a read-only float32 array of the table's shape: a view of the mapped file,
    or a copy where it lies in two files.

    Raises:
        CheckpointError: a file is missing or damaged; the shapes are not those of a GPT; or they
            and the numbers of the files do not belong together.
        UsageError: keys are to be ignored, of which there are none.
    """
    path = Path(path)
    need_present(path / SHAPES, (), ignore)
    files = [path / f"params_{n}.npy" for n in range(PARTS)]
    need_within(path, path / SHAPES, *files)
    shapes = _read_shapes(path / SHAPES)
    config, remarks = _config(path, shapes)
    names = ["wpe", "wte", *(f"h{layer}/{x}" for layer in range(config.n_layer) for x in BLOCK)]
    table = tensor_table(config)
    for name, shape in zip(names, shapes, strict=True):
        if shape != table[name].stored_shape:
            should = f"should be {list(table[name].stored_shape)}"
            raise refusal(path / SHAPES, f"wrong shape: {name} {list(shape)} ({should})")
    numbers = _Numbers(path, files, sum(map(math.prod, shapes)))
    starts: dict[str, int] = {}
    end = 0
    for name, shape in zip(names, shapes, strict=True):
        starts[name], end = end, end + math.prod(shape)

    def read(name: str) -> NDArray[np.float32]:
        value = numbers.read(starts[name], table[name].size).reshape(table[name].shape)
        value.setflags(write=False)
        return value

    def own(name: str) -> NDArray[np.float32]:
        return np.array(read(name))

    beside = [path / "hparams.json"] if os.path.lexists(path / "hparams.json") else []
    return Checkpoint(
        path=path,
        format="openai",
        config=config,
        tensors=LazyTensors(table, read, own),
        files=(path / SHAPES, *beside, *files),
        remarks=tuple(remarks),
        restorable=False,
    )


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    try:
        value = json.loads(read_bytes(path, LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"not JSON: {error}") from None
    if not isinstance(value, list) or not all(_is_shape(shape) for shape in value):
        raise refusal(path, "is not a list of shapes")
    return [tuple(shape) for shape in value]


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 < n < 1 << 30 for n in value)


def _config(path: Path, shapes: list[tuple[int, ...]]) -> tuple[Config, list[str]]:
    """Sizes from the shapes; the number of heads from ``hparams.json``, where there is one."""
    layers, rest = divmod(len(shapes) - 2, len(BLOCK))
    if layers < 1 or rest or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        what = f"has {len(shapes)} shapes, should have two tables and {len(BLOCK)} for each block"
        raise refusal(path / SHAPES, what)
    (n_ctx, width), (n_vocab, _) = shapes[:2]
    hparams = path / "hparams.json"
    if os.path.lexists(hparams):
        need_within(path, hparams)
        heads = read_json(hparams).get("n_head")
        if type(heads) is not int:
            raise refusal(hparams, f"{stated('n_head', heads)} is not an integer")
        remarks = []
    else:
        heads = max(1, width // HEAD_SIZE)
        remarks = [
            f"{SHAPES}: no file says n_head; {heads} is taken, for heads of at most {HEAD_SIZE} "
            'channels, as those of GPT. {"n_head": N} in hparams.json says otherwise'
        ]
    try:
        return Config(n_vocab, n_ctx, width, heads, layers, architecture="openai-gpt"), remarks
    except ConfigError as error:
        raise refusal(hparams if not remarks else path / SHAPES, error) from None


class _Numbers:
    """The numbers of all files in a row: float32[n]."""

    def __init__(self, path: Path, files: list[Path], total: int) -> None:
        self._parts: list[tuple[MappedFile, int, int]] = []
        for file in files:
            mapped = MappedFile(file)
            self._parts.append((mapped, *_header(mapped)))
        if (found := sum(count for _, _, count in self._parts)) != total:
            what = f"the files have {found} numbers, but {SHAPES} has shapes for {total}"
            raise refusal(path, what)

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        pieces = list(self._pieces(start, start + count))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _pieces(self, start: int, end: int) -> Iterator[NDArray[Any]]:
        first = 0
        for mapped, offset, count in self._parts:
            low, high = max(start, first), min(end, first + count)
            if low < high:
                yield mapped.view(offset + 4 * (low - first), 4 * (high - low)).view("<f4")
            first += count


def _header(file: MappedFile) -> tuple[int, int]:
    """The offset in bytes at which the numbers of an array begin, and how many there are."""
    start = io.BytesIO(file.view(0, min(file.size, LARGEST_HEADER)).tobytes())
    try:
        version = np.lib.format.read_magic(start)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(start)
    except (ValueError, KeyError) as error:
        raise refusal(file.path, f"not an array of NumPy: {error}") from None
    if len(shape) != 1 or dtype != np.dtype("<f4"):
        raise refusal(file.path, f"is {dtype}{list(shape)}, should be a row of float32")
    if start.tell() + 4 * shape[0] != file.size:
        raise refusal(file.path, f"has {file.size} bytes, which is not what its header says")
    return start.tell(), int(shape[0])
