"""Several MLPs in the place of one, of which each token takes a few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.architecture import Experts
from gpt_verify.reference.ops import Array, softmax


def chosen(logits_TE: Array, count: int) -> NDArray[np.bool_]:
    """The experts with the largest logits, bool[T, E]; of equal ones those that come first."""
    order_TE = np.argsort(-logits_TE, axis=-1, kind="stable")
    found_TE = np.zeros(logits_TE.shape, bool)
    np.put_along_axis(found_TE, order_TE[:, :count], True, axis=-1)
    return found_TE


def routing(logits_TE: Array, experts: Experts) -> Array:
    """How much each expert counts for each token, [T, E]; zero for those that are not chosen.

    Softmax over all of them and then the largest, whose sum is below 1 (Fedus et al. 2022,
    equations 1 and 2); or the largest and then softmax over these (Jiang et al. 2024, Mixtral,
    section 2.1; gpt-oss ``gpt_oss/torch/model.py``, ``MLPBlock``), which is the same as dividing
    by that sum.
    """
    chosen_TE = chosen(logits_TE, experts.chosen)
    if experts.renormalised:
        return softmax(np.where(chosen_TE, logits_TE, -np.inf))
    return np.where(chosen_TE, softmax(logits_TE), 0)


def mixture(x_TD: Array, weights_TE: Array, expert: Callable[[int, Array], Array]) -> Array:
    """Σ_e weight_e · MLP_e(x), over the chosen ones: Shazeer et al. 2017, equation 1.

    Args:
        x_TD: what all of them read.
        weights_TE: ``routing``.
        expert: number and rows of x → what that MLP makes of them.
    """
    total_TD = np.zeros_like(x_TD)
    for e in range(weights_TE.shape[-1]):
        rows = np.flatnonzero(weights_TE[:, e])
        if len(rows):
            total_TD[rows] += weights_TE[rows, e, None] * expert(e, x_TD[rows])
    return total_TD
