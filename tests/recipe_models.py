"""Models on which ways of rounding are told apart."""

from __future__ import annotations

from functools import cache

from families import in_memory, read, stated
from models import checkpoint

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.reference import Config

#: Sizes of which no two are equal, and a head whose root is no power of two.
SIZES = {"n_vocab": 101, "n_ctx": 40, "n_embd": 48, "n_head": 4, "n_layer": 1}


@cache
def source(name: str) -> Checkpoint:
    """A model of this family, with gains and biases that are not 1 and 0."""
    if name == "gpt2":
        return checkpoint(Config(**SIZES))
    # Without Llama's scaling, so that a frequency is what a reader of the paper computes.
    return in_memory(name, read(stated(name, **{"rope_scaling": None} if name == "llama" else {})))
