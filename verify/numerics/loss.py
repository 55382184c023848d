"""The cross entropy of given logits, one prediction at a time, and how far rounding may move it.

Rows of logits are widened a few at a time: [T, V] in float64 is 400 MB for a released model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.budgets import FUNCTION_ULP
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.loss import log_softmax

Floats = NDArray[np.floating]
Tokens = NDArray[np.integer]

#: Elements of the logits that are widened to float64 at a time.
TILE = 1 << 20


@dataclass(frozen=True)
class Losses:
    """What the logits of one batch say, float64[B, T]: at t, of what is predicted from there.

    Attributes:
        nats: shift → loss of the token that lies that far ahead, NaN where there is none.
        nats_of: id → loss of that id, whatever token comes.
        uniform: mean loss over the whole vocabulary, the other half of label smoothing.
        budget: of ``nats[1]``, in the arithmetic of one precision.
        slope: ‖d loss / d logits‖ of ``nats[1]``: what noise of 1 in every logit does to it.
        log_total: the logarithm of the partition sum, log Σ exp(x).
        across: [B], at the last position of each row, the loss of the next row's first token; NaN
            of the last row.
        around: [B], there, that of the row's own first token.
        n_vocab: of the logits.
    """

    nats: dict[int, Floats]
    nats_of: dict[int, Floats]
    uniform: Floats
    budget: Floats
    slope: Floats
    log_total: Floats
    across: Floats
    around: Floats
    n_vocab: int


def losses(
    logits_BTV: Floats, tokens_BT: Tokens, p: Precision, shifts: Sequence[int], ids: Sequence[int]
) -> Losses:
    """Score every position of a batch on the tokens around it.

    Args:
        logits_BTV: of any floating type.
        tokens_BT: the tokens that they were computed from.
        p: the arithmetic whose budget is asked for.
        shifts: keys of ``nats``; 1 is the loss.
        ids: keys of ``nats_of``.
    """
    shape = tokens_BT.shape
    nats = {shift: np.full(shape, np.nan) for shift in shifts}
    nats_of = {token: np.full(shape, np.nan) for token in ids}
    uniform, budget, slope, log_total = (np.full(shape, np.nan) for _ in range(4))
    across, around = (np.full(shape[0], np.nan) for _ in range(2))
    for row, rows in _tiles(logits_BTV):
        x_TV = np.asarray(logits_BTV[row, rows], np.float64)
        log_p_TV = log_softmax(x_TV)
        at = np.arange(rows.start, rows.start + len(x_TV))
        for shift in shifts:
            has = (at + shift >= 0) & (at + shift < shape[1])
            labels = tokens_BT[row, at[has] + shift]
            nats[shift][row, at[has]] = -log_p_TV[has, labels]
            if shift == 1 and has.any():
                scored = x_TV[has], log_p_TV[has], labels
                budget[row, at[has]] = _budget(p, *scored)
                slope[row, at[has]] = _slope(*scored[1:])
        for token in ids:
            nats_of[token][row, at] = -log_p_TV[:, token]
        uniform[row, at] = -log_p_TV.mean(axis=-1)
        log_total[row, at] = x_TV[:, 0] - log_p_TV[:, 0]
        if at[-1] == shape[1] - 1:
            around[row] = -log_p_TV[-1, tokens_BT[row, 0]]
            if row + 1 < shape[0]:
                across[row] = -log_p_TV[-1, tokens_BT[row + 1, 0]]
    n_vocab = logits_BTV.shape[-1]
    return Losses(nats, nats_of, uniform, budget, slope, log_total, across, around, n_vocab)


def mean_budget(p: Precision, nats: Floats, budget: Floats) -> float:
    """Budget of the mean of N losses.

    Their errors may be one and the same (losses that are nearly equal are rounded alike), so
    budgets are averaged, not their squares. Then a sum of N terms, a division and a store.
    """
    mean = float(np.mean(np.abs(nats)))
    own = (len(nats) * p.u_sum**2 + 2 * p.u**2) * mean**2
    return float(np.sqrt(np.mean(budget) ** 2 + own)) + p.tiny


def loss_noise(log_p_TV: Floats, noise_RTV: Floats, labels_T: Tokens) -> float:
    """What measured noise of the logits does to the mean loss, to first order; RMS over positions
    and draws.

    The noise as it was drawn, together with what noise of that size does in directions of its
    own, so that a draw that happens to cancel cannot make a correct port look wrong. Errors of
    different positions may be the same error, so that a mean does not make them smaller.
    """
    gradient = np.exp(log_p_TV)
    gradient[np.arange(len(labels_T)), labels_T] -= 1.0
    drawn = np.sum(gradient * noise_RTV, axis=-1)
    other = np.mean(noise_RTV**2, axis=-1) * np.sum(gradient**2, axis=-1)
    return float(np.sqrt(np.mean(drawn**2 + other)))


def _tiles(logits_BTV: Floats) -> Iterator[tuple[int, slice]]:
    batch, length, n = logits_BTV.shape
    step = max(1, TILE // n)
    for row in range(batch):
        for first in range(0, length, step):
            yield row, slice(first, first + step)


def _budget(p: Precision, x_TV: Floats, log_p_TV: Floats, labels_T: Tokens) -> Floats:
    """The budget of log Σ exp(x) - x[label], [T], in nats, by whichever of the two usual ways it is
    computed.

    The logits may be cast; then s = x - max is rounded, and is a relative error of exp(s); a sum
    of n terms; a logarithm; and either max + log Σ - x[label] or log Σ - s[label]; one store.
    """
    at = np.arange(len(labels_T))
    p_TV = np.exp(log_p_TV)
    s_TV = x_TV - np.max(x_TV, axis=-1, keepdims=True)
    log_total = np.log(np.sum(np.exp(s_TV), axis=-1))
    total = np.max(x_TV, axis=-1) + log_total
    loss = -log_p_TV[at, labels_T]
    term = (p.u * x_TV) ** 2 + (p.u * s_TV) ** 2 + (p.exp_ulp * p.u_sum + p.u) ** 2
    relative = np.sum(p_TV**2 * term, axis=-1)
    relative += x_TV.shape[-1] * p.u_sum**2 * (np.sum(p_TV**2, axis=-1) + 1.0)
    square = relative + ((FUNCTION_ULP * p.u_sum + p.u) * log_total) ** 2
    for rounded in (total, x_TV[at, labels_T], s_TV[at, labels_T], loss, loss):
        square = square + (p.u * rounded) ** 2
    budget: Floats = np.sqrt(square)
    return budget


def _slope(log_p_TV: Floats, labels_T: Tokens) -> Floats:
    """‖p - e[label]‖, [T]."""
    at = np.arange(len(labels_T))
    p_TV = np.exp(log_p_TV)
    squares = np.sum(p_TV**2, axis=-1) - 2 * p_TV[at, labels_T] + 1.0
    slope: Floats = np.sqrt(np.maximum(squares, 0.0))
    return slope
