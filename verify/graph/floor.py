"""How far rounding moves the logits of one sequence, position by position.

The floor is measured: the oracle in the port's precision against the oracle in float64. But one
measurement is one draw, and what happens at a position may hang on one number. So the noise is
drawn several times (``gpt_verify.numerics.draws``), that of a position counts as no less than that
of the sequence (root mean square), and what the last two operations may do by themselves is added:
arithmetic as wide as the port's accumulators, of a residual stream, a norm and logits that are each
rounded to the port's format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.cascade import Lockstep
from gpt_verify.graph.last_norm import read_by_the_head, stream_before
from gpt_verify.graph.tiles import vocabulary_tiles
from gpt_verify.numerics.budgets import FUNCTION_ULP, Measured
from gpt_verify.numerics.draws import FOR_POSITIONS, draws
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Floor:
    """The noise floor: what rounding does to the logits of one sequence.

    Attributes:
        rms_T: root mean square over the vocabulary, for each position that was asked for.
        last_V: the oracle's logits at the last position, in float64.
        token_V: how many times as noisy each token's logit is over these positions, at least 1.
    """

    rms_T: Floats
    last_V: Floats
    token_V: Floats


def measure_floor(
    config: Config,
    weights: DeclaredWeights,
    precision: Precision,
    tokens_T: NDArray[np.integer],
    first: int = 0,
) -> Floor:
    """Measure the noise floor of the positions from ``first`` on.

    Args:
        config: sizes.
        weights: the checkpoint's tensors, in the precision that the port declares.
        precision: what the port computes in.
        tokens_T: one sequence of ids, int[T].
        first: the first position that is asked for.
    """
    with np.errstate(all="ignore"):  # what overflows has no floor, and whoever asks is told
        length = len(tokens_T)
        count = draws(length, length * parameter_count(config), FOR_POSITIONS)
        lockstep = Lockstep(config, weights, precision, tokens_T, count)
        stream = lockstep.value(stream_before(config))
        assert stream is not None, "sites are asked for in their order"
        read = read_by_the_head(config, weights, precision, tokens_T, stream[0][first:])
        size = len(tokens_T) - first
        noise_T, squares_T, last, noise = np.zeros(size), np.zeros(size), [], []
        for _, exact, drawn in lockstep.logits(first):
            noise_TV = (drawn**2).mean(axis=0)
            noise_T += noise_TV.sum(axis=-1)
            noise.append(noise_TV.mean(axis=0))
            squares_T += (exact**2).sum(axis=-1)
            last.append(exact[-1])
        noise_T, squares_T = noise_T / config.n_vocab, squares_T / config.n_vocab
        noise_T = np.maximum(noise_T, noise_T.mean())
        budget_T = _unembedding(config, weights, precision, read, squares_T)
        return Floor(np.sqrt(noise_T + budget_T), np.concatenate(last), _by_token(noise))


def least_floor(config: Config, precision: Precision, squares_T: Floats) -> Floats:
    """What the floor of a position is at least, [T]: what the last product alone may do.

    Of its budget n u_sum² (Σ x² w² + (x w)²) + u² (…), which is part of every floor
    (``_unembedding``), the term in (x w)² needs nothing but the logits. So whatever is within it is
    within the floor, which need not be measured then.

    Args:
        config: sizes.
        precision: as of ``measure_floor``.
        squares_T: mean over the vocabulary of the squared logits, for each position.
    """
    twice = 2.0 if precision.name == "float64" else 1.0
    unit = config.n_embd * precision.u_sum**2 + precision.u**2
    least_T: Floats = np.sqrt(twice * unit * squares_T)
    return least_T


def _mean_squares(config: Config, weights: DeclaredWeights) -> Floats:
    """Of each column of the head, [D]: computed once, and kept with the weights."""
    key = "mean squares of the head"
    if key not in weights.memo:
        head_VD, mean_D = weights[config.head], np.zeros(config.n_embd)
        for rows in vocabulary_tiles(1, config.n_vocab, config.n_embd):
            mean_D += (head_VD[rows].astype(np.float64) ** 2).sum(axis=0)
        weights.memo[key] = mean_D / config.n_vocab
    found: Floats = weights.memo[key]
    return found


def _by_token(noise: list[Floats]) -> Floats:
    """The noise of each token, relative to that of all, from the squares in tiles."""
    noise_V = np.concatenate(noise).astype(np.float32)
    mean = noise_V.mean()
    return np.sqrt(np.maximum(noise_V / mean, 1.0)) if mean > 0 else np.ones_like(noise_V)


def _unembedding(
    config: Config, weights: DeclaredWeights, p: Precision, read: Measured, squares_T: Floats
) -> Floats:
    """Mean over the vocabulary of the squared budget of the last product, [T]: x² w² is summed
    over the tokens before it is multiplied."""
    mean_D = _mean_squares(config, weights)
    assert read.budget is not None, "an operation's result has a budget"
    size_T = read.value**2 @ mean_D + squares_T
    if config.keys.bias_head:
        size_T += np.mean(weights.float64("lm_head/b") ** 2)
    budget_T = (config.n_embd * p.u_sum**2 + p.u**2) * size_T
    if config.keys.cap_logits is not None:
        # What soft_cap's budget adds; its slope is at most 1, and x times it no more than it makes.
        function = FUNCTION_ULP * p.u_sum + p.u
        budget_T += (2 * p.u**2 + function**2) * squares_T
    if p.name == "float64":
        budget_T *= 2  # as in ``budgets``: the oracle rounds as well
    return np.maximum(budget_T + read.budget**2 @ mean_D, p.tiny**2)
