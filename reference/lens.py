"""The logit lens by its definition: each residual stream read as if it were the last.

nostalgebraist, "interpreting GPT: the logit lens" (2020): softmax(ln_f(h) wteᵀ). What is said of
such a distribution is said here in one line each, with every logit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.branches import Weights
from gpt_verify.reference.config import Config
from gpt_verify.reference.loss import log_softmax
from gpt_verify.reference.model import forward
from gpt_verify.reference.ops import Array, layer_norm, unembed

#: Sites that are states of the residual stream, to which the lens applies.
RESIDUAL = ("embed", ".resid_mid", ".resid_post")


def lens_logits(weights: Weights, x_TD: Array, head: str = "wte") -> Array:
    """Decode one residual stream [T, D] into logits [T, V]."""
    names = ("ln_f/g", "ln_f/b", head)
    g_D, b_D, wte_VD = (np.asarray(weights[name], x_TD.dtype) for name in names)
    return unembed(layer_norm(x_TD, g_D, b_D), wte_VD)


def lens(
    weights: Weights, config: Config, tokens_T: NDArray[np.integer]
) -> Iterator[tuple[str, Array]]:
    """Yield ``(site, log-probabilities [T, V])`` for every state of the stream, in nats.

    Raises:
        ValueError: a model without ``ln_f``, whose states are normed where they are made.
    """
    if config.own is not None:
        raise ValueError(f"the lens does not read {config.architecture} yet")
    if not config.norm_last:
        raise ValueError(f"the lens reads through ln_f, which {config.architecture} has not")
    for site, value in forward(weights, config, tokens_T):
        if site.endswith(RESIDUAL):
            yield site, log_softmax(lens_logits(weights, value, config.head))


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


def entropy_nats(log_q_TV: Array) -> Array:
    """−Σ q ln q at each position, [T]; 0 log 0 is 0."""
    q_TV: Array = np.exp(log_q_TV)
    terms_TV: Array = np.multiply(q_TV, log_q_TV, out=np.zeros_like(q_TV), where=q_TV != 0)
    entropy_T: Array = -np.sum(terms_TV, axis=-1)
    return entropy_T


def total_variation(log_p_TV: Array, log_q_TV: Array) -> Array:
    """½ Σ |p − q| at each position, [T]."""
    distance_T: Array = 0.5 * np.sum(np.abs(np.exp(log_p_TV) - np.exp(log_q_TV)), axis=-1)
    return distance_T


def js_distance(log_p_TV: Array, log_q_TV: Array) -> Array:
    """√(½ KL(p ‖ m) + ½ KL(q ‖ m)), m = (p + q)/2, [T]: a metric (Endres and Schindelin 2003).

    In nats, so at most √ln 2. What rounding leaves below zero is zero.
    """
    log_m_TV: Array = np.logaddexp(log_p_TV, log_q_TV) - np.log(2.0)
    divergence_T = 0.5 * (kl_nats(log_p_TV, log_m_TV) + kl_nats(log_q_TV, log_m_TV))
    distance_T: Array = np.sqrt(np.maximum(divergence_T, 0.0))
    return distance_T


def top(logits_TV: Array, k: int) -> NDArray[np.integer]:
    """Ids of the k largest logits, [T, k], the largest first; of equal ones the smaller id."""
    ids_Tk: NDArray[np.integer] = np.argsort(-logits_TV, axis=-1, kind="stable")[:, :k]
    return ids_Tk


def statistics(
    logits_NTV: Array, tokens_T: NDArray[np.integer], k: int
) -> dict[str, NDArray[np.floating] | NDArray[np.integer]]:
    """Every statistic of the lens, [N, T] (``top_…``: [N, T, k]), from the logits of N states.

    "Final" is the last of the N states, "input" the first. The last position has no next token:
    there ``rank_next`` and ``loss_nats`` say what holds for token 0, and mean nothing.
    """
    next_T = np.append(tokens_T[1:], 0)
    log_NTV = np.stack([log_softmax(logits_TV) for logits_TV in logits_NTV])
    predicted_T = top(logits_NTV[-1], 1)[:, 0]
    by_state = []
    for logits_TV, log_TV in zip(logits_NTV, log_NTV, strict=True):
        top_Tk = top(logits_TV, k)
        by_state.append(
            {
                "rank_final_top1": rank(logits_TV, predicted_T),
                "rank_input": rank(logits_TV, tokens_T),
                "rank_next": rank(logits_TV, next_T),
                "kl_final_layer_nats": kl_nats(log_NTV[-1], log_TV),
                "kl_input_layer_nats": kl_nats(log_NTV[0], log_TV),
                "kl_layer_final_nats": kl_nats(log_TV, log_NTV[-1]),
                "js_distance": js_distance(log_NTV[-1], log_TV),
                "total_variation": total_variation(log_NTV[-1], log_TV),
                "entropy_nats": entropy_nats(log_TV),
                "loss_nats": -np.take_along_axis(log_TV, next_T[:, None], axis=-1)[:, 0],
                "top_ids": top_Tk,
                "top_probabilities": np.exp(np.take_along_axis(log_TV, top_Tk, axis=-1)),
            }
        )
    return {name: np.stack([state[name] for state in by_state]) for name in by_state[0]}
