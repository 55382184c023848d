"""The first GPT in small: the same weights for other people's code and for the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.reference import Config, logits

CONFIG = Config(
    n_vocab=31, n_ctx=8, n_embd=12, n_head=3, n_layer=2, architecture="openai-gpt", tied=True
)
_TENSORS = synthetic_tensors(CONFIG, seed=0)


def write(directory: Path) -> Path:
    """Write the checkpoint as transformers keeps it, and return the same directory."""
    write_huggingface(directory, CONFIG, _TENSORS)
    return directory


def distance(tokens_T: ArrayLike, logits_TV: ArrayLike) -> float:
    """The largest difference from the reference's logits, whose one table is at both ends, as a
    fraction of the largest logit."""
    exact_TV = logits(_TENSORS, CONFIG, np.asarray(tokens_T))
    return float(np.max(np.abs(np.asarray(logits_TV) - exact_TV)) / np.max(np.abs(exact_TV)))
