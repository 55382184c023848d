"""Where weights come from.

A checkpoint is a directory in one of two formats, OpenAI's (TensorFlow) or Hugging Face's
(safetensors). Either way the result is the same: a config and a lazy mapping from the checkpoint's
own tensor names to float32 arrays with the shapes of ``reference.tensor_table``.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

from gpt_verify.checkpoint.record import Checkpoint as Checkpoint
from gpt_verify.checkpoint.record import Tensors as Tensors
from gpt_verify.errors import CheckpointError, UsageError
from gpt_verify.text import nearest, nearest_path


def open_checkpoint(path: str | Path | None = None) -> Checkpoint:
    """Open a checkpoint directory of either format; the one that ships with the package where
    None is given.

    Nothing but names, shapes and sizes is read here; tensors are read when they are looked up.

    Raises:
        CheckpointError: no such directory, neither format, damaged, incomplete, or not a GPT-2.
    """
    from gpt_verify.checkpoint import huggingface, openai

    path = default_checkpoint() if path is None else Path(path)
    if path.is_file():
        raise CheckpointError(f"{path}: is a file; give the directory that holds it, {path.parent}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory{nearest_path(path)}")
    if (path / "hparams.json").exists() or (path / "checkpoint").is_file():
        return openai.open_checkpoint(path)
    if (path / "config.json").exists():
        return huggingface.open_checkpoint(path)
    raise CheckpointError(
        f"{path}: neither an OpenAI checkpoint (hparams.json) nor a Hugging Face one (config.json)"
        f"{_meant(path)}"
    )


def _meant(path: Path) -> str:
    """A directory in it that is a checkpoint, or a file in it that is almost one's."""
    try:
        inside = sorted(islice(path.iterdir(), 10_000))
    except OSError:
        return ""
    marks = ("hparams.json", "config.json")
    for directory in inside:
        if any((directory / mark).is_file() for mark in marks):
            return f"; did you mean {directory}?"
    for entry in inside:
        if hint := nearest(entry.name, marks):
            return f"; it has {entry.name}{hint}"
    return ""


def need_gpt2(checkpoint: Checkpoint, what: str) -> None:
    """UsageError where it is no GPT-2 with a tied head, the one model that ``what`` is about."""
    config = checkpoint.config
    kind = f"an untied {config.architecture}" if not config.tied else f"an {config.architecture}"
    if config.architecture != "gpt2" or not config.tied:
        raise UsageError(f"{checkpoint.path}: is {kind}; {what} about a tied GPT-2 alone")


def default_checkpoint(format: Literal["openai", "huggingface"] = "openai") -> Path:
    """Directory of the small trained checkpoint that ships with the package."""
    return Path(__file__).resolve().parent.parent / "data" / "default" / format
