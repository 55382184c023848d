"""What the ports are run on: inputs that reveal, not inputs that please."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import UsageError
from gpt_verify.reference.config import Config

Tokens = NDArray[np.int64]

#: Most rows in the batch that shows every token id; beyond that the ids are sampled, in fewer rows:
#: a sample shows that rows are kept apart, and every row of wte is compared among the weights.
COVERAGE_ROWS, SAMPLED_ROWS = 8, 3

#: The longest default input of a model whose positions are computed, of which some take 131,072
#: tokens and more: one more than the released GPT-2's context, so that a boundary of kernels is
#: among the lengths. More tokens would show the same formula once more.
COMPUTED = 1025


@dataclass(frozen=True)
class Input:
    """One call of a port.

    Attributes:
        name: for messages: ``length 17``, ``every token``.
        tokens: int64[B, T].
        in_float64: whether the architecture is judged on it too, where the port runs in float64.
    """

    name: str
    tokens: Tokens
    in_float64: bool = True


def revealing_lengths(most: int) -> list[int]:
    """1, 2, every power of two ± 1, and the most: the boundaries of kernels and tables."""
    lengths = {1, 2, most}
    power = 4
    while power - 1 <= most:
        lengths |= {power - 1, power + 1}
        power *= 2
    return sorted(n for n in lengths if n <= most)


def longest(config: Config) -> int:
    """Tokens of the longest default input.

    All of n_ctx where every position has a row of a table, which may be wrong. Otherwise so many
    that something lies outside each window, and ``COMPUTED`` at least.
    """
    if config.keys.table:
        return config.n_ctx
    widest = max((window for window in config.keys.windows if window is not None), default=0)
    return min(config.n_ctx, max(COMPUTED, widest + 2))


def default_inputs(config: Config, seed: int) -> list[Input]:
    """Sequences of every revealing length, a repetition, and a batch with every token id.

    The lengths end with ``longest``: with it every position embedding occurs, or the edge of every
    window. The batch has rows that differ; where the vocabulary does not fit into it, the ids are
    a seeded sample with the first and the last.

    The lengths between the shortest ones and the longest are there for kernels, which the declared
    precision runs: in float64 they would show the same operations once more.
    """
    most = longest(config)
    inputs = [
        replace(seeded(config, length, seed), in_float64=length in (1, 2, most))
        for length in revealing_lengths(most)
    ]
    rng = np.random.default_rng([seed, config.n_vocab, 1])
    period = max(1, min(5, config.n_ctx // 2))
    repeated = np.resize(rng.integers(0, config.n_vocab, period), min(4 * period, config.n_ctx))
    inputs.append(Input("repetition", repeated[None, :].astype(np.int64)))

    width = min(config.n_ctx, 256)
    rows = -(-config.n_vocab // width)
    rows = rows if rows <= COVERAGE_ROWS else SAMPLED_ROWS
    # At least two, and never as many as tokens: time first and batch first must not look alike.
    rows = max(rows, 2)
    rows += rows == width
    ids = rng.permutation(config.n_vocab)[: rows * width]
    if len(ids) < rows * width:
        ids = np.resize(ids, rows * width)
    elif 0 not in ids or config.n_vocab - 1 not in ids:
        ids[0], ids[-1] = 0, config.n_vocab - 1
    complete = config.n_vocab <= rows * width
    name = "every token" if complete else "sampled tokens"
    inputs.append(Input(name, ids.reshape(rows, width).astype(np.int64)))
    return inputs


def seeded(config: Config, length: int, seed: int) -> Input:
    """One sequence of random ids, the same for the same seed and length."""
    if not 1 <= length <= config.n_ctx:
        raise UsageError(f"length {length}: the model takes 1 … {config.n_ctx} tokens")
    rng = np.random.default_rng([seed, length])
    tokens = rng.integers(0, config.n_vocab, (1, length), dtype=np.int64)
    return Input(f"length {length}", tokens)


def given(config: Config, tokens: Sequence[int]) -> Input:
    """The user's own ids."""
    if not 1 <= len(tokens) <= config.n_ctx:
        raise UsageError(f"{len(tokens)} tokens: the model takes 1 … {config.n_ctx}")
    if bad := [t for t in tokens if not 0 <= t < config.n_vocab]:
        raise UsageError(f"token id {bad[0]}: ids lie in 0 … {config.n_vocab - 1}")
    return Input("given tokens", np.asarray([tokens], np.int64))
