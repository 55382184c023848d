"""OpenAI's checkpoint format as TensorFlow itself writes and reads it.

The writer uses TensorFlow's Saver, so that the files are what OpenAI's are and not what we believe
them to be; the reader is the second witness beside our own. Both work in a TensorFlow process.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.links import need_within
from gpt_verify.checkpoint.openai_state import bundle_prefix
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.engines.tensorflow import start
from gpt_verify.errors import CheckpointError
from gpt_verify.process.worker import Worker
from gpt_verify.reference import Config, tensor_table
from gpt_verify.reference.weights import TensorSpec

#: As in the released models: ``model.ckpt.index``, ``model.ckpt.data-00000-of-00001``, …
PREFIX = "model.ckpt"
SCOPE = "model/"


def write_openai(
    directory: str | Path,
    config: Config,
    tensors: Mapping[str, NDArray[Any]],
    encoder: Path | None = None,
    merges: Path | None = None,
) -> None:
    """Write a checkpoint as OpenAI published theirs, with TensorFlow's Saver.

    ``checkpoint``, ``model.ckpt.{index,meta,data-00000-of-00001}`` (the ``.meta`` holds the forward
    graph), ``hparams.json``, and where they are given ``encoder.json`` and ``vocab.bpe``. Tensors
    are looked up one at a time. All is written beside the directory and appears when it is
    complete, or not at all.

    Args:
        directory: made if need be; files of the same names are replaced.
        config: sizes.
        tensors: float32, the names and shapes of ``reference.tensor_table``.
        encoder: the vocabulary to copy.
        merges: the byte-pair merges to copy.

    Raises:
        CheckpointError: a tensor is missing, surplus, or of another shape or dtype; the
            directory cannot be written; or it is no tied GPT-2.
        MissingDependency: TensorFlow is not installed.
    """
    if config.architecture != "gpt2" or not config.tied:
        raise CheckpointError(f"cannot write {directory}: OpenAI's format is that of a tied GPT-2")
    table = tensor_table(config)
    if missing := sorted(set(table) - set(tensors)):
        raise CheckpointError(f"cannot write {directory}: missing tensor {missing[0]}")
    if surplus := sorted(set(tensors) - set(table)):
        raise CheckpointError(f"cannot write {directory}: unknown tensor {surplus[0]}")
    with filled_directory(directory) as partial, start(error=CheckpointError) as worker:
        worker.call("build", config=config.as_dict())
        for spec in table.values():
            worker.call("assign", as_stored(tensors[spec.name], spec), name=spec.name)
        worker.call("save", prefix=str(partial / PREFIX))
        (partial / "hparams.json").write_text(json.dumps(config.as_dict(), indent=2) + "\n")
        for source, name in ((encoder, "encoder.json"), (merges, "vocab.bpe")):
            if source is not None:
                shutil.copyfile(source, partial / name)


def as_stored(value: NDArray[Any], spec: TensorSpec) -> NDArray[np.float32]:
    """The array in the shape that the files have, ``[1, in, out]`` for matrices.

    Raises:
        CheckpointError: it is not float32, or of another shape than the table says.
    """
    if value.dtype != np.float32 or value.shape != spec.shape:
        raise CheckpointError(
            f"{spec.name} is {value.dtype}{list(value.shape)}, should be float32{list(spec.shape)}"
        )
    return value.reshape(spec.stored_shape)


@contextmanager
def filled_directory(directory: str | Path) -> Iterator[Path]:
    """A place to write in, whose files come to lie in ``directory`` on success and vanish if not.

    Raises:
        CheckpointError: it cannot be written.
    """
    final = Path(directory).absolute()
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if not final.exists():
            partial.rename(final)
            return
        for file in sorted(partial.iterdir()):
            file.replace(final / file.name)
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checkpoint_prefix(path: str | Path) -> Path:
    """The common beginning of the checkpoint's files, as the file ``checkpoint`` names it.

    Raises:
        CheckpointError: no such file, it names none, or one outside its own directory.
    """
    prefix, _ = bundle_prefix(Path(path))
    need_within(Path(path), Path(f"{prefix}.index"))
    return prefix.absolute()


class TensorFlowReader(Mapping[str, NDArray[Any]]):
    """Checkpoint files as TensorFlow reads them, lazily; a context that ends the process.

    Names are without the scope ``model/``, and matrices ``[in, out]``, as in `Checkpoint.tensors`.
    Every variable in the files is listed, whether or not it belongs to a GPT-2.

    Attributes:
        dtypes: name → TensorFlow's name of the dtype in the file.
        stored_shapes: name → shape in the file.
    """

    def __init__(self, prefix: Path, worker: Worker) -> None:
        self._prefix, self._worker = str(prefix), worker
        rows = worker.call("tensors", prefix=self._prefix).fields["tensors"]
        self._keys = {key.removeprefix(SCOPE): key for key, _shape, _dtype in rows}
        self.stored_shapes = {k.removeprefix(SCOPE): tuple(shape) for k, shape, _dtype in rows}
        self.dtypes = {key.removeprefix(SCOPE): dtype for key, _shape, dtype in rows}

    def __getitem__(self, name: str) -> NDArray[Any]:
        (value,) = self._worker.call("tensor", prefix=self._prefix, name=self._keys[name]).arrays
        is_matrix = name.endswith("/w") and value.ndim == 3 and len(value) == 1
        return value[0] if is_matrix else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def close(self) -> None:
        """End the TensorFlow process."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_with_tensorflow(path: str | Path | Checkpoint) -> TensorFlowReader:
    """Open OpenAI's files with TensorFlow's reader; close it, or use it as a context.

    Raises:
        CheckpointError: the files cannot be read.
        MissingDependency: TensorFlow is not installed.
    """
    prefix = checkpoint_prefix(path.path if isinstance(path, Checkpoint) else path)
    worker = start(error=CheckpointError)
    try:
        return TensorFlowReader(prefix, worker)
    except BaseException:
        worker.close()
        raise
