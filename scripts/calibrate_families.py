"""Random correct models of the families, for ``calibrate.py --families``.

The families take turns. A model has sizes, keys, a scale of weights and inputs of its own; half of
them have a few channels of the residual stream that are many times as large as the others
(Sun et al. 2024, arXiv 2402.17762), and once in a while a model is narrow and takes 4,096 tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint, open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family_files import example, write_family
from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.inputs import Input
from gpt_verify.reference import Config, tensor_table

Tensors = Mapping[str, NDArray[np.float32]]

#: Positions of a long model. Of every third family one model in so many is long: it takes minutes.
LONG, SELDOM = 4096, 13
#: Channels of a head: the third of them that some families turn is a whole number of pairs.
HEADS = [6, 8, 12, 24, 36]
#: The same where there are experts: torch's grouped products in half precision take no width that
#: is no multiple of 8.
EVEN = [8, 24]
#: Tensors that write into the residual stream.
WRITING = ("attn/o/w", "mlp/down/w", "c_proj/w")


@dataclass(frozen=True)
class Drawn:
    """A random model.

    Attributes:
        family: its name.
        keys: of ``config.json``.
        scale: of the weights other than gains.
        massive: some channels of the residual stream are far larger than the others.
        long: it is judged on ``LONG`` tokens.
    """

    family: str
    keys: Mapping[str, Any]
    scale: float
    massive: bool
    long: bool


def drawn(index: int, rng: np.random.Generator) -> Drawn:
    """The model of this number."""
    name = list(FAMILIES)[index % len(FAMILIES)]
    long = index // len(FAMILIES) % SELDOM == SELDOM // 2 and index % 3 == 0
    n_head = 2 if long else int(rng.choice([2, 4, 8]))
    experts = "num_experts_per_tok" in FAMILIES[name].example
    heads = EVEN if experts else HEADS
    sizes = (
        int(rng.integers(40, 100 if long else 700)),
        LONG if long else int(rng.integers(2, 140)),
        n_head * int(rng.choice(heads[:3] if long else heads)),
        n_head,
        1 if long else int(rng.integers(1, 5)),
    )
    keys = example(name, sizes)
    for key in ("sliding_window", "window_size"):
        if key in keys:
            keys[key] = int(rng.choice([1, 2, 5, 17, 64, 1000]))
    for key in ("intermediate_size", "moe_intermediate_size", "ffn_dim", "n_inner"):
        if key in keys:
            keys[key] = 8 * int(rng.integers(1, 20)) if experts else int(rng.integers(3, 160))
    scale = float(np.exp(rng.uniform(-1.5, 0.7)))
    return Drawn(name, keys, scale, bool(rng.integers(2)), long)


def tensors_of(config: Config, model: Drawn, seed: int) -> Tensors:
    """Its weights."""
    made = dict(synthetic_tensors(config, seed, scale=model.scale))
    if model.massive:
        rng = np.random.default_rng([seed, 3])
        channels = rng.choice(config.n_embd, min(3, config.n_embd), replace=False)
        factor = np.float32(np.exp(rng.uniform(1, 4)))
        for name in tensor_table(config):
            if name in ("wte", "wpe") or name.endswith(WRITING):
                made[name][..., channels] *= factor
    return made


def inputs_of(config: Config, model: Drawn, rng: np.random.Generator) -> list[Input]:
    """One token, all of n_ctx, something in between, a batch, and one token over and over; of a
    long model the whole context alone."""
    n = config.n_ctx
    shapes = [(1, 1), (1, n), (1, int(rng.integers(1, n + 1))), (3, max(1, n // 2))]
    if model.long:
        shapes = [(1, LONG)]
    different = list(dict.fromkeys(shapes))
    inputs = [Input(f"{s}", rng.integers(0, config.n_vocab, s, dtype=np.int64)) for s in different]
    same = np.full((1, min(n, 140)), rng.integers(config.n_vocab), np.int64)
    return [*inputs, Input("one token", same)]


@contextmanager
def model_of(index: int, rng: np.random.Generator) -> Iterator[tuple[Drawn, Checkpoint]]:
    """A model as a directory, from which ports are loaded; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        model = drawn(index, rng)
        write_family(Path(folder), model.keys, lambda config: tensors_of(config, model, index))
        yield model, open_checkpoint(folder)


def ports_of(model: Drawn) -> list[str]:
    """What transformers can compute its attention with."""
    return [f"huggingface-{way}" for way in FAMILIES[model.family].attention]
