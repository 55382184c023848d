"""Weights that are no numbers are a finding about the checkpoint, not about a port of it."""

from __future__ import annotations

import numpy as np

from gpt_verify.checkpoint.files import refusal
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.text import listing

#: What holds no weights among the files of a checkpoint.
_WORDS = {".json", ".bpe", ".index", ".txt", ".meta", ""}


def need_finite(checkpoint: Checkpoint) -> None:
    """Each weight is a finite number.

    Raises:
        CheckpointError: one is not; it names the tensor and the file or files that may hold it.
    """
    for name in checkpoint.tensors:
        value = checkpoint.tensors[name]
        finite = np.isfinite(value)
        if finite.all():
            continue
        at = np.unravel_index(int(np.argmin(finite)), value.shape)
        index = ", ".join(map(str, at))
        count = int(value.size - np.count_nonzero(finite))
        holding = [path for path in checkpoint.files if path.suffix not in _WORDS]
        where = holding[0] if len(holding) == 1 else checkpoint.path
        shards = f" (in {listing(path.name for path in holding)})" if len(holding) > 1 else ""
        raise refusal(
            where,
            f"{name}[{index}] = {value[at]}: {count} of its {value.size} weights are not finite, "
            f"so that no port can be compared{shards}",
        )
