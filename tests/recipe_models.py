"""Models on which ways of rounding are told apart."""

from __future__ import annotations

from functools import cache

from families import in_memory, read, stated
from models import checkpoint

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.family_files import example
from gpt_verify.reference import Config

#: Sizes of which no two are equal, and a head whose root is no power of two.
SIZES = {"n_vocab": 101, "n_ctx": 40, "n_embd": 48, "n_head": 4, "n_layer": 1}

#: V, P, D, H, L of families in which a few tokens tell little: five weights a token, of which two
#: count; slopes that are powers of two up to 8 heads.
LONGER = {"bloom": (101, 90, 48, 12, 1), "mixtral": (101, 300, 24, 4, 1)}
LONGER |= {name: LONGER["mixtral"] for name in ("qwen3_moe", "gpt_oss")}


@cache
def source(name: str) -> Checkpoint:
    """A model of this family, with gains and biases that are not 1 and 0."""
    if name == "gpt2":
        return checkpoint(Config(**SIZES))
    if name in LONGER:
        return in_memory(name, read(example(name, LONGER[name])))
    # Without Llama's scaling, so that a frequency is what a reader of the paper computes.
    return in_memory(name, read(stated(name, **{"rope_scaling": None} if name == "llama" else {})))
