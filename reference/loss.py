"""Next-token cross entropy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.ops import Array


def log_softmax(x: Array) -> Array:
    """log of softmax over the last axis, exact where softmax underflows."""
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def token_losses_nats(logits_TV: Array, tokens_T: NDArray[np.integer]) -> Array:
    """Loss of each prediction, [T - 1]: logits at t are scored on the token at t + 1."""
    return -log_softmax(logits_TV[:-1])[np.arange(len(tokens_T) - 1), tokens_T[1:]]


def loss_nats(logits_TV: Array, tokens_T: NDArray[np.integer]) -> float:
    """Mean over the T - 1 predicted tokens; ValueError for one token, which predicts nothing.

    Radford et al. 2018 (GPT), equation 1, divided by the number of predictions.
    """
    if len(tokens_T) < 2:
        raise ValueError("the loss needs at least two tokens")
    return float(np.mean(token_losses_nats(logits_TV, tokens_T)))
