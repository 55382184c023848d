"""Direct logit attribution: what each attention, each MLP and the embedding add to one logit.

The last state of the residual stream is a sum, x = Σ_s c_s, of the embedding and of what each
sub-block wrote. With the deviation σ of x as it is, the last norm is linear, and so is the head:

    logit(v) = Σ_s (g ∘ (c_s − mean(c_s))) · w_v / σ + b · w_v

so that the terms add up to the logit (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"). A term
says what a sub-block wrote, and nothing of what later ones made of it.

What a sub-block wrote is the state after it less the state before it: what the stream received, of
the reference and of a port that shows its states, in whatever precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.lens.states import place
from gpt_verify.lens.statistics import UNDEFINED, listed
from gpt_verify.reference.ops import LAYER_NORM_EPSILON

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

#: Unit roundoff of float64, in which everything here is computed.
U = 2.0**-53
#: The last term: the last norm's bias.
BIAS = "ln_f/b"


@dataclass(frozen=True, eq=False)
class Attribution:
    """One logit at each position, as a sum over what wrote to the residual stream.

    Attributes:
        parts: S names in order of computation: ``embed``, ``h.0.attn.out``, ``h.0.mlp.out``, …,
            and ``ln_f/b``, the last norm's bias. Of a port that does not show the state between,
            ``h.0`` is the whole block.
        tokens_T: int64[T]: whose logit it is at each position; −1 where there is no such token.
        terms_ST: float64[S, T]: what each part adds to it.
        logits_T: float64[T]: the logit, without a bias of the head.
        budget_T: float64[T]: a bound of how far float64's rounding takes the sum of the terms from
            the logit.
    """

    parts: tuple[str, ...]
    tokens_T: Ints
    terms_ST: Floats
    logits_T: Floats
    budget_T: Floats

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON: lists of numbers; None stands for what is undefined."""
        return {
            "parts": list(self.parts),
            "tokens": listed(self.tokens_T),
            "terms": listed(self.terms_ST),
            "logits": listed(self.logits_T),
            "budget": listed(self.budget_T),
        }


def part_names(sites: Sequence[str]) -> tuple[str, ...]:
    """The name of what was written between each state and the one before it."""
    names = []
    for site in sites:
        layer, inside = place(site)
        if layer < 0:
            names.append(site)
        elif inside:
            names.append(f"h.{layer}.attn.out")
        else:
            between = f"h.{layer}.resid_mid" in sites
            names.append(f"h.{layer}.mlp.out" if between else f"h.{layer}")
    return (*names, BIAS)


def attribute(
    states: Sequence[tuple[str, Floats]],
    weights: Mapping[str, Floats],
    tokens_T: Ints,
    epsilon: float = LAYER_NORM_EPSILON,
) -> Attribution:
    """Write the logit of one token at each position as a sum.

    Args:
        states: ``(site, x[T, D])`` in order of computation, the first being ``embed`` and the last
            the one that ``ln_f`` reads.
        weights: ``ln_f/g``, ``ln_f/b`` and ``wte``, the head.
        tokens_T: the token at each position; ``UNDEFINED`` where there is none.
        epsilon: of the last norm.
    """
    g_D, b_D = (np.asarray(weights[f"ln_f/{p}"], np.float64) for p in "gb")
    asked_T = np.asarray(tokens_T)
    known_T = asked_T != UNDEFINED
    w_TD = np.asarray(weights["wte"][np.where(known_T, asked_T, 0)], np.float64)
    last_TD = np.asarray(states[-1][1], np.float64)
    with np.errstate(all="ignore"):  # what is not finite is undefined
        centred_TD = _centred(last_TD)
        r_T1 = 1 / np.sqrt(np.mean(centred_TD**2, axis=-1, keepdims=True) + epsilon)
        # Centring a term and then multiplying is one product with a centred row.
        read_TD = g_D * w_TD * r_T1
        sizes_TD, read_size_TD = np.zeros_like(last_TD), np.abs(read_TD)
        terms, before_TD = [], np.zeros_like(last_TD)
        for _, state in states:
            x_TD = np.asarray(state, np.float64)
            wrote_TD = x_TD - before_TD
            terms.append(np.sum(_centred(wrote_TD) * read_TD, axis=-1))
            # The state was rounded when it was made, and its difference once more.
            sizes_TD += np.abs(wrote_TD) + _mean(np.abs(wrote_TD))
            sizes_TD += np.abs(x_TD)
            before_TD = x_TD
        terms.append(np.sum(b_D * w_TD, axis=-1))
        logits_T = np.sum((g_D * centred_TD * r_T1 + b_D) * w_TD, axis=-1)
        # By how much, relative to u, the deviation is wrong: through the squares, and the mean.
        spread_T = np.mean(np.abs(centred_TD) * (np.abs(last_TD) + np.abs(_mean(last_TD))), -1)
        relative_T = 1 + spread_T * r_T1[:, 0] ** 2
        size_T = relative_T * np.sum(sizes_TD * read_size_TD, -1) + np.sum(np.abs(b_D * w_TD), -1)
        # No number goes through more roundings than this on either side (Higham 2002, lemma 3.1).
        roundings = 3 * last_TD.shape[-1] + len(states) + 16
        budget_T = 2 * roundings * U / (1 - roundings * U) * size_T
    unknown = ~known_T | ~np.isfinite(logits_T)
    found = [np.where(unknown, np.nan, values) for values in (np.stack(terms), logits_T, budget_T)]
    names = part_names([site for site, _ in states])
    return Attribution(names, asked_T, found[0], found[1], found[2])


def _mean(x_TD: Floats) -> Floats:
    return np.asarray(np.mean(x_TD, axis=-1, keepdims=True))


def _centred(x_TD: Floats) -> Floats:
    return x_TD - _mean(x_TD)
