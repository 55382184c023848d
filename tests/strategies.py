"""Hypothesis strategies: models of odd sizes, weights that are hard on arithmetic, and tokens.

A model is drawn as a few small numbers from which it is made, so that a failing example is short
enough to be read, and is repeated by writing it down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.inputs import Input
from gpt_verify.laws.table import CHECKS
from gpt_verify.reference import Config

Tensors = dict[str, NDArray[np.float32]]

#: How many times as many examples the long profile takes (``tests/conftest.py``).
LONGER = 100


def scaled(examples: int) -> settings:
    """So many examples, or ``LONGER`` times as many in the long profile; the rest as there."""
    longer = LONGER if settings.get_current_profile_name() == "long" else 1
    return settings(max_examples=examples * longer)


# Weights


def ordinary(tensors: Tensors, config: Config, seed: int) -> None:
    """As ``gpt-verify synth`` makes them, large channels included."""


def tiny_variance(tensors: Tensors, config: Config, seed: int) -> None:
    """Embeddings whose variance is far below the 1e-5 of the layer norm."""
    for name in ("wte", "wpe"):
        tensors[name] *= np.float32(1e-4)


def huge_scores(tensors: Tensors, config: Config, seed: int) -> None:
    """Queries and keys so large that a softmax has one nonzero element."""
    for layer in range(config.n_layer):
        for leaf in ("w", "b"):
            tensors[f"h{layer}/attn/c_attn/{leaf}"][..., : 2 * config.n_embd] *= np.float32(6)


def constant_rows(tensors: Tensors, config: Config, seed: int) -> None:
    """Embeddings that are the same in every channel, so that a norm divides by the root of eps."""
    for name in ("wte", "wpe"):
        tensors[name][...] = tensors[name][:, :1]


def large_channels(tensors: Tensors, config: Config, seed: int) -> None:
    """One channel of the residual stream is hundreds of times as large as the others."""
    channel = seed % config.n_embd
    tensors["wpe"][:, channel] += np.float32(300)
    for layer in range(config.n_layer):
        tensors[f"h{layer}/mlp/c_proj/b"][channel] += np.float32(100)


def silent(tensors: Tensors, config: Config, seed: int) -> None:
    """Blocks that add nothing but their biases: every product is zero."""
    for name in tensors:
        if name.endswith("c_proj/w"):
            tensors[name][...] = 0


def equal_rows(tensors: Tensors, config: Config, seed: int) -> None:
    """Every token and every position is the same vector: nothing depends on the input, all numbers
    of a run are rounded alike, and the gradient is zero."""
    for name in ("wte", "wpe"):
        tensors[name][...] = tensors[name][:1]


REGIMES: dict[str, Callable[[Tensors, Config, int], None]] = {
    regime.__name__: regime
    for regime in (
        *(ordinary, tiny_variance, huge_scores, constant_rows, large_channels),
        *(silent, equal_rows),
    )
}


# Models


@dataclass(frozen=True)
class Model:
    """What a model is made from.

    Attributes:
        sizes: V, P, D, H, L, as ``gpt-verify synth --size`` takes them.
        regime: a function above.
        seed: of the weights.
    """

    sizes: tuple[int, int, int, int, int]
    regime: str = "ordinary"
    seed: int = 0

    @property
    def config(self) -> Config:
        return Config(*self.sizes)

    def tensors(self) -> Tensors:
        made = {k: np.array(v) for k, v in synthetic_tensors(self.config, self.seed).items()}
        REGIMES[self.regime](made, self.config, self.seed)
        return made

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(Path("in-memory"), "openai", self.config, self.tensors())


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """One of everything, odd numbers, and powers of two ± 1 where kernels change."""
    heads = draw(st.sampled_from([1, 2, 3, 4, 5]))
    width = heads * draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9]))
    vocabulary = draw(st.sampled_from([1, 2, 3, 7, 11, 31, 64, 101, 257]))
    context = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 33]))
    return vocabulary, context, width, heads, draw(st.integers(1, 3))


def models() -> st.SearchStrategy[Model]:
    """Models of any size and regime."""
    return st.builds(Model, sizes(), st.sampled_from(list(REGIMES)), st.integers(0, 2**16))


# Tokens


@st.composite
def tokens(draw: st.DrawFn, config: Config) -> NDArray[np.int64]:
    """Ids int64[B, T]: any, all the same, or the first and the last in turn."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, config.n_ctx))
    kind = draw(st.sampled_from(["any", "one", "ends"]))
    if kind == "one":
        return np.full((rows, length), draw(st.integers(0, config.n_vocab - 1)), np.int64)
    if kind == "ends":
        ends = np.arange(rows * length) % 2 * (config.n_vocab - 1)
        return ends.reshape(rows, length).astype(np.int64)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return rng.integers(0, config.n_vocab, (rows, length), dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """A correct port of a model, and what it is run on; ``repr`` is enough to repeat it."""

    model: Model
    attention: str
    dtype: Any
    tokens: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def laws(self) -> list[str] | None:
        """Those that it must pass; None is all of them.

        In float16 transformers' eager attention adds the lowest number to masked scores. At a
        padding position, which sees nothing else, scores below -16 all become -inf, and the softmax
        of that is not a number: a defect, which the law is right to find (tests/laws/test_padding).
        """
        if (self.attention, self.dtype) != ("eager", "float16"):
            return None
        of_masks = ("positions.padding", "positions.masks", "cache.padded")
        return [law.id for law in CHECKS if law.id not in of_masks]

    @property
    def inputs(self) -> list[Input]:
        return [Input(f"input {i}", np.array(rows)) for i, rows in enumerate(self.tokens)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    model = draw(models())
    drawn = [draw(tokens(model.config)) for _ in range(draw(st.integers(1, 2)))]
    return Case(
        model,
        draw(st.sampled_from(["eager", "sdpa"])),
        draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        tuple(tuple(map(tuple, array.tolist())) for array in drawn),
    )
