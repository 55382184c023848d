"""What every format's reader shares: the lazy mapping, and the check against the tensor table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.files import refusal
from gpt_verify.reference import Config, tensor_table
from gpt_verify.text import listing

#: Types that are read → NumPy's code. float64 alone is rounded, and then a remark says so.
CODES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "float64": "<f8"}
READABLE = tuple(CODES)
LAYER = re.compile(r"h(0|[1-9][0-9]{0,5})/")


def narrowed(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers in float32: a view where they are, widened exactly, or rounded from float64.

    Raises:
        CheckpointError: a number of float64 is too large for float32.
    """
    try:
        with np.errstate(over="raise"):
            return array.astype(np.float32, copy=False)
    except FloatingPointError:
        raise refusal(path, f"{name} has numbers that are too large for float32") from None


def cast_remark(found: Iterable[Stored], weights: Path) -> list[str]:
    """The remark that tensors are rounded, which no reader may leave unsaid."""
    wide = [tensor.name for tensor in found if tensor.dtype == "float64"]
    if not wide:
        return []
    rounded = "is float64, and is" if len(wide) == 1 else "are float64, and are"
    return [f"{weights.name}: {listing(wide)} {rounded} rounded to float32"]


def need_as_stated(
    main: Path, shard: Path, found: Iterable[str], expected: set[str] | None
) -> None:
    """Refuse a shard that has other tensors than the index says.

    Args:
        main: the index, or the only file.
        shard: the file that was read.
        found: names of the tensors that it has.
        expected: names that it must have; any where None.

    Raises:
        CheckpointError: a tensor is missing, or is one too many.
    """
    if expected is not None and (wrong := sorted(set(found) ^ expected)):
        raise refusal(shard, f"has other tensors than {main.name} says: {listing(wrong)}")


class LazyTensors(Mapping[str, NDArray[np.float32]]):
    """Name → read-only float32 array, read at each look-up and not kept.

    Args:
        names: in the order of ``reference.tensor_table``.
        read: reads one tensor, by the checkpoint's own name.
        own: reads it into memory that is the caller's to keep and to change.
    """

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], NDArray[np.float32]],
        own: Callable[[str], NDArray[np.float32]],
    ) -> None:
        self._names = dict.fromkeys(names)
        self._read, self._own = read, own

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def own(self, name: str) -> NDArray[np.float32]:
        """See ``gpt_verify.checkpoint.handed``."""
        if name not in self._names:
            raise KeyError(name)
        return self._own(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Stored:
    """A tensor as a file has it: under which name, of which type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Format:
    """The way in which one format writes what the table of tensors says.

    Attributes:
        stored_name: the checkpoint's own name → the file's.
        leading_one: matrices are stored as ``[1, in, out]``.
        dtypes: types that can be read as float32 without loss.
        sizes: size of the config → the key of the file that states it.
    """

    stored_name: Callable[[str], str]
    leading_one: bool
    dtypes: tuple[str, ...]
    sizes: Mapping[str, str]


def check_tensors(
    found: Mapping[str, Stored], config: Config, weights: Path, stated: Path, format: Format
) -> None:
    """Compare names, shapes and types with ``reference.tensor_table``, and report all differences.

    Args:
        found: the checkpoint's own name → what the file has. A tensor that is no part of a GPT-2
            stands under the file's name.
        config: the sizes that the checkpoint states.
        weights: the file that has the tensors.
        stated: the file that states the sizes.
        format: how the tensors' names and shapes are written.

    Raises:
        CheckpointError: a size disagrees with a tensor; or tensors are missing, surplus, or of the
            wrong shape or type.
    """
    _check_sizes(found, config, weights, stated, format)
    table = tensor_table(config)
    missing = [format.stored_name(name) for name in table if name not in found]
    surplus = [tensor.name for name, tensor in found.items() if name not in table]
    shapes, dtypes = [], []
    for name, spec in table.items():
        if (tensor := found.get(name)) is None:
            continue
        shape = spec.stored_shape if format.leading_one else spec.shape
        if tensor.shape != shape:
            shapes.append(f"{tensor.name} {list(tensor.shape)} (should be {list(shape)})")
        if tensor.dtype not in format.dtypes:
            dtypes.append(f"{tensor.name} {tensor.dtype} (should be {' or '.join(format.dtypes)})")
    kinds = {
        "missing": missing,
        "surplus": surplus,
        "wrong shape": shapes,
        "wrong type": dtypes,
    }
    if wrong := [f"{kind}: {listing(names)}" for kind, names in kinds.items() if names]:
        raise refusal(weights, "; ".join(wrong))


def _check_sizes(
    found: Mapping[str, Stored], config: Config, weights: Path, stated: Path, format: Format
) -> None:
    """Name the size that is wrong, rather than the hundred tensors that then do not fit."""
    for size, name, axis in (("n_vocab", "wte", 0), ("n_embd", "wte", 1), ("n_ctx", "wpe", 0)):
        tensor = found.get(name)
        if tensor is None or len(tensor.shape) != 2:
            continue
        if (value := getattr(config, size)) != tensor.shape[axis]:
            raise refusal(
                stated,
                f"{format.sizes[size]} = {value}, but {tensor.name} in {weights.name} is "
                f"{list(tensor.shape)}, which makes it {tensor.shape[axis]}",
            )
    layers = {int(m[1]): tensor.name for name, tensor in found.items() if (m := LAYER.match(name))}
    if layers and (count := max(layers) + 1) != config.n_layer:
        raise refusal(
            stated,
            f"{format.sizes['n_layer']} = {config.n_layer}, but the last layer in {weights.name} "
            f"is that of {layers[count - 1]}, which makes it {count}",
        )
