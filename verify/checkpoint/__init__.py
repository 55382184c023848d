"""The checkpoints that weights come from.

A checkpoint is a directory in OpenAI's format (TensorFlow; NumPy's for the first GPT) or in Hugging
Face's (safetensors or torch's). Either way the result is the same: a config and a lazy mapping from
the checkpoint's own tensor names to float32 arrays with the shapes of ``reference.tensor_table``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from gpt_verify.checkpoint.record import Checkpoint as Checkpoint
from gpt_verify.checkpoint.record import Tensors as Tensors
from gpt_verify.errors import UsageError


def open_checkpoint(path: str | Path | None = None, ignore: Collection[str] = ()) -> Checkpoint:
    """Open a checkpoint of any format; the one that ships with the package where None is given.

    Nothing but names, shapes and sizes is read here; tensors are read when they are looked up, as
    read-only arrays, which a model must copy.

    Args:
        path: a directory, a file of it, or the name of a model of the hub.
        ignore: keys of ``config.json`` or ``hparams.json`` of which the user says that they do not
            alter what is computed.

    Raises:
        CheckpointError: no such directory, no format or two, damaged, incomplete, or not a GPT-2.
        MissingDependency: torch, or huggingface_hub, is needed and not installed.
        UsageError: a key that is to be ignored does not occur.
    """
    from gpt_verify.checkpoint import gpt1, huggingface, openai
    from gpt_verify.checkpoint.locate import locate

    directory, kind = locate(default_checkpoint() if path is None else Path(path))
    readers: dict[str, Callable[[Path, Collection[str]], Checkpoint]] = {
        "openai": openai.open_checkpoint,
        "huggingface": huggingface.open_checkpoint,
        "gpt1": gpt1.open_checkpoint,
    }
    return readers[kind](directory, ignore)


def need_gpt2(checkpoint: Checkpoint, what: str) -> None:
    """UsageError where it is no GPT-2 with a tied head, the one model that ``what`` is about."""
    config = checkpoint.config
    kind = f"an untied {config.architecture}" if not config.tied else f"an {config.architecture}"
    if config.architecture != "gpt2" or not config.tied:
        raise UsageError(f"{checkpoint.path}: is {kind}; {what} about a tied GPT-2 alone")


def default_checkpoint(format: Literal["openai", "huggingface"] = "openai") -> Path:
    """Directory of the small trained checkpoint that ships with the package."""
    return Path(__file__).resolve().parent.parent / "data" / "default" / format
