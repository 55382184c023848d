"""Where weights come from.

A checkpoint is a directory in one of two formats, OpenAI's (TensorFlow) or Hugging Face's
(safetensors). Either way the result is the same: a config and a lazy mapping from the checkpoint's
own tensor names to float32 arrays with the shapes of ``reference.tensor_table``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reference import Config
from verify.errors import CheckpointError, UsageError

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and sizes of a GPT-2, as they lie in a directory.

    Attributes:
        path: the directory.
        format: ``"openai"`` or ``"huggingface"``.
        config: sizes.
        tensors: name → float32 array, read when it is looked up and not kept. Matrices have the
            shape ``[in, out]``; names and shapes are those of ``reference.tensor_table``. What a
            port is handed is its own, to keep and to change (``verify.checkpoint.handed``).
        files: every file that was used, for the report's checksums.
        encoder: ``encoder.json``, where there is one.
        merges: ``vocab.bpe``, where there is one.
    """

    path: Path
    format: Literal["openai", "huggingface"]
    config: Config
    tensors: Tensors = field(repr=False)
    files: tuple[Path, ...] = ()
    encoder: Path | None = None
    merges: Path | None = None


def open_checkpoint(path: str | Path | None = None) -> Checkpoint:
    """Open a checkpoint directory of either format; the one that ships with the package where
    None is given.

    Nothing but names, shapes and sizes is read here; tensors are read when they are looked up.

    Raises:
        CheckpointError: no such directory, neither format, damaged, incomplete, or not a GPT-2.
    """
    from verify.checkpoint import huggingface, openai

    path = default_checkpoint() if path is None else Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory")
    if (path / "hparams.json").exists() or (path / "checkpoint").exists():
        return openai.open_checkpoint(path)
    if (path / "config.json").exists():
        return huggingface.open_checkpoint(path)
    raise CheckpointError(
        f"{path}: neither an OpenAI checkpoint (hparams.json) nor a Hugging Face one (config.json)"
    )


def need_gpt2(checkpoint: Checkpoint, what: str) -> None:
    """UsageError where it is no GPT-2 with a tied head, the one model that ``what`` is about."""
    config = checkpoint.config
    kind = f"an untied {config.architecture}" if not config.tied else f"an {config.architecture}"
    if config.architecture != "gpt2" or not config.tied:
        raise UsageError(f"{checkpoint.path}: is {kind}; {what} about a tied GPT-2 alone")


def default_checkpoint(format: Literal["openai", "huggingface"] = "openai") -> Path:
    """Directory of the small trained checkpoint that ships with the package."""
    return Path(__file__).resolve().parent.parent / "data" / "default" / format
