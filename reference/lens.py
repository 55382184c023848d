"""The logit lens by its definition: each residual stream read as if it were the last.

nostalgebraist, "interpreting GPT: the logit lens" (2020): softmax(ln_f(h) wteᵀ).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from reference.loss import log_softmax
from reference.model import Weights, forward
from reference.ops import Array, layer_norm, unembed

#: Sites that are states of the residual stream, to which the lens applies.
RESIDUAL = ("embed", ".resid_mid", ".resid_post")


def lens_logits(weights: Weights, x_TD: Array) -> Array:
    """Decode one residual stream [T, D] into logits [T, V]."""
    names = ("ln_f/g", "ln_f/b", "wte")
    g_D, b_D, wte_VD = (np.asarray(weights[name], x_TD.dtype) for name in names)
    return unembed(layer_norm(x_TD, g_D, b_D), wte_VD)


def lens(
    weights: Weights, config: Config, tokens_T: NDArray[np.integer]
) -> Iterator[tuple[str, Array]]:
    """Yield ``(site, log-probabilities [T, V])`` for every state of the stream, in nats."""
    for site, value in forward(weights, config, tokens_T):
        if site.endswith(RESIDUAL):
            yield site, log_softmax(lens_logits(weights, value))


def kl_nats(log_p_TV: Array, log_q_TV: Array) -> Array:
    """KL(p ‖ q) at each position, [T]; 0 log 0 is 0, and infinite where q alone is 0."""
    p_TV: Array = np.exp(log_p_TV)
    ratio_TV: Array = np.subtract(log_p_TV, log_q_TV, out=np.zeros_like(p_TV), where=p_TV != 0)
    kl_T: Array = np.sum(p_TV * ratio_TV, axis=-1)
    return kl_T


def rank(logits_TV: Array, tokens_T: NDArray[np.integer]) -> NDArray[np.integer]:
    """How many tokens have a strictly larger logit than the given one, [T]; 0 is the top.

    Equal logits share the better rank. NaN is never the top: as a token's own logit it ranks below
    all others, and as another's above.
    """
    own_T1 = np.take_along_axis(logits_TV, np.asarray(tokens_T)[:, None], axis=-1)
    not_above_TV: NDArray[np.bool_] = logits_TV <= own_T1
    rank_T: NDArray[np.integer] = np.sum(~not_above_TV, axis=-1)
    return rank_T
