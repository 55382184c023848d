"""Next-token cross entropy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.ops import Array


def log_softmax(x: Array) -> Array:
    """log of softmax over the last axis, exact where softmax underflows."""
    shifted: Array = x - np.max(x, axis=-1, keepdims=True)
    log_total: Array = np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return shifted - log_total


def token_losses_nats(logits_TV: Array, tokens_T: NDArray[np.integer]) -> Array:
    """Loss of each prediction, [T - 1]: logits at t are scored on the token at t + 1.

    ValueError where the tokens are not those of the logits: NumPy would take an id of -100, which
    some use for "ignore", for the hundredth from the end.
    """
    tokens_T = np.asarray(tokens_T)
    t, v = logits_TV.shape
    if tokens_T.shape != (t,):
        raise ValueError(f"logits for {t} tokens, but tokens of shape {list(tokens_T.shape)}")
    if t and not 0 <= tokens_T.min() <= tokens_T.max() < v:
        raise ValueError(f"token ids must lie in 0 … {v - 1}")
    losses: Array = -log_softmax(logits_TV[:-1])[np.arange(t - 1), tokens_T[1:]]
    return losses


def loss_nats(logits_TV: Array, tokens_T: NDArray[np.integer]) -> float:
    """Mean over the T - 1 predicted tokens; ValueError for one token, which predicts nothing.

    Radford et al. 2018 (GPT), equation 1, divided by the number of predictions.
    """
    if len(tokens_T) < 2:
        raise ValueError("the loss needs at least two tokens")
    return float(np.mean(token_losses_nats(logits_TV, tokens_T)))
