"""What a checkpoint is, whatever format it lies in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference import Config

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and sizes of a GPT-2, as they lie in a directory.

    Attributes:
        path: the directory.
        format: ``"openai"`` or ``"huggingface"``.
        config: sizes: ``n_vocab``, ``n_ctx``, ``n_embd``, ``n_head``, ``n_layer``.
        tensors: name → float32 array, read when it is looked up and not kept. Matrices have the
            shape ``[in, out]``; names are OpenAI's: ``wte``, ``h0/attn/c_attn/w``. What a port is
            handed is its own, to keep and to change.
        files: every file that was used, for the report's checksums.
        encoder: ``encoder.json``, where there is one.
        merges: ``vocab.bpe``, where there is one.
        tokenizer: ``tokenizer.json``, where it takes the place of these two.
        added: ``added_tokens.json``, where there is one.
        remarks: what was ignored or taken for granted, a line each.
        restorable: whether OpenAI's own graph can restore the files by itself: float32 variables in
            its scope.
    """

    path: Path
    format: Literal["openai", "huggingface"]
    config: Config
    tensors: Tensors = field(repr=False)
    files: tuple[Path, ...] = ()
    encoder: Path | None = None
    merges: Path | None = None
    tokenizer: Path | None = None
    added: Path | None = None
    remarks: tuple[str, ...] = ()
    restorable: bool = True

    @property
    def has_vocabulary(self) -> bool:
        """Text can be encoded, if the files are what they should be."""
        return self.tokenizer is not None or (self.encoder is not None and self.merges is not None)
