"""What the lens says of every state of the residual stream, at every position: one record.

The record is plain data, so that whoever draws it, compares it or writes it needs no engine. What
each number means is said once, in ``STATISTICS``; the definitions themselves are carried out, with
everything materialised and in float64, by ``reference.lens``.

Notation: q is the distribution that the lens decodes from one state at one position, p the one of
the last state (the model's own prediction), r the one of the first state (``embed``). Logarithms
are natural, so that every divergence, entropy and loss is in nats.

Ties. The rank of a token is the number of tokens with a strictly larger logit: 0 is the top, and
equal logits share the better rank. The top k are ordered by logit, equal ones by id, the smaller
first; the top-1 of the last state is chosen in the same way.

Undefined. The last position has no next token: its rank is ``UNDEFINED`` and its loss NaN. A state
whose logits are not all finite has no distribution: ranks and top ids are ``UNDEFINED``, everything
else NaN. Where the last (or the first) state is such a one, so is every number that refers to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

#: Of a rank or an id that does not exist.
UNDEFINED = -1


@dataclass(frozen=True)
class Statistic:
    """One number for each state and position.

    Attributes:
        name: the field of ``Lens``.
        title: what a heading says.
        kind: ``rank`` counts tokens from 0; ``nats`` is not negative and has no upper bound;
            ``fraction`` lies in 0 … 1.
        better: which end means that the state is close to what it is compared with; None where
            neither is.
        meaning: one sentence.
    """

    name: str
    title: str
    kind: Literal["rank", "nats", "fraction"]
    better: Literal["low", "high"] | None
    meaning: str


STATISTICS: dict[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            "rank_final_top1",
            "rank of the final top-1",
            "rank",
            "low",
            "How many tokens this state prefers to the one that the model ends up predicting.",
        ),
        Statistic(
            "rank_input",
            "rank of the input token",
            "rank",
            None,
            "How many tokens this state prefers to the one that was read at this position.",
        ),
        Statistic(
            "rank_next",
            "rank of the true next token",
            "rank",
            "low",
            "How many tokens this state prefers to the one that does follow.",
        ),
        Statistic(
            "kl_final_layer_nats",
            "KL(final ‖ layer)",
            "nats",
            "low",
            "Σ p ln(p/q): what is lost when this state stands in for the last one.",
        ),
        Statistic(
            "kl_input_layer_nats",
            "KL(input ‖ layer)",
            "nats",
            None,
            "Σ r ln(r/q), r decoded from the embedding: how far the state has left its input.",
        ),
        Statistic(
            "kl_layer_final_nats",
            "KL(layer ‖ final)",
            "nats",
            "low",
            "Σ q ln(q/p): large where this state believes in what the model ends up excluding.",
        ),
        Statistic(
            "js_distance",
            "Jensen–Shannon distance to final",
            "fraction",
            "low",
            "√(½ KL(p ‖ m) + ½ KL(q ‖ m)), m = (p + q)/2, in nats: a metric, at most √ln 2 = 0.83.",
        ),
        Statistic(
            "total_variation",
            "total variation to final",
            "fraction",
            "low",
            "½ Σ |p − q|: the probability that must be moved to turn one into the other.",
        ),
        Statistic(
            "entropy_nats",
            "entropy",
            "nats",
            None,
            "−Σ q ln q: 0 where the state is certain, ln V where it knows nothing.",
        ),
        Statistic(
            "loss_nats",
            "loss at this layer",
            "nats",
            "low",
            "−ln q(next token): the cross entropy if the model ended here.",
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Lens:
    """The lens of one port on one sequence: N states, T positions, the k best tokens of each.

    Attributes:
        sites: the states of the residual stream in order of computation: ``embed``,
            ``h.0.resid_mid``, ``h.0.resid_post``, …; the last one is what "final" means, the
            first one what "input" means.
        tokens_T: the ids that were read.
        decoder: how a state was turned into logits, in words.
        rank_final_top1, rank_input, rank_next: int64[N, T]: how many tokens this state prefers to
            the final top-1, to the token that was read, to the one that follows; −1 where there is
            none.
        kl_final_layer_nats, kl_input_layer_nats, kl_layer_final_nats: float64[N, T], in nats:
            Kullback–Leibler divergences; NaN where a distribution is not defined.
        js_distance: float64[N, T]: the Jensen–Shannon distance to the final distribution, at most
            √ln 2.
        total_variation: float64[N, T], 0 … 1: to the final distribution.
        entropy_nats, loss_nats: float64[N, T], in nats: the entropy of this state's distribution,
            and the cross entropy of the token that follows (NaN at the last position).
        top_ids: int64[N, T, k], the most probable first.
        top_probabilities: float64[N, T, k].

    Raises:
        ValueError: a shape that does not fit the others.
    """

    sites: tuple[str, ...]
    tokens_T: Ints
    decoder: str
    rank_final_top1: Ints
    rank_input: Ints
    rank_next: Ints
    kl_final_layer_nats: Floats
    kl_input_layer_nats: Floats
    kl_layer_final_nats: Floats
    js_distance: Floats
    total_variation: Floats
    entropy_nats: Floats
    loss_nats: Floats
    top_ids: Ints
    top_probabilities: Floats

    def __post_init__(self) -> None:
        states = (len(self.sites), *np.shape(self.tokens_T))
        for name in (*STATISTICS, "top_ids", "top_probabilities"):
            found = getattr(self, name).shape
            expected = (*states, self.top_ids.shape[-1]) if name.startswith("top_") else states
            if found != expected:
                raise ValueError(f"{name} has shape {list(found)}, not {list(expected)}")

    def statistic(self, name: str) -> Floats | Ints:
        """One field of ``STATISTICS`` by its name, [N, T]."""
        value: Floats | Ints = getattr(self, STATISTICS[name].name)
        return value

    @property
    def top1_NT(self) -> Ints:
        """The most probable token of each state, int64[N, T]."""
        top1: Ints = self.top_ids[..., 0]
        return top1

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON: lists of numbers; None stands for what is undefined.

        ``statistics`` maps each name to [N][T]; ``top_ids`` and ``top_probabilities`` are
        [N][T][k].
        """
        return {
            "sites": list(self.sites),
            "tokens": np.asarray(self.tokens_T).tolist(),
            "decoder": self.decoder,
            "statistics": {name: listed(getattr(self, name)) for name in STATISTICS},
            "top_ids": listed(self.top_ids),
            "top_probabilities": listed(self.top_probabilities),
        }


def listed(values: Floats | Ints) -> list[Any]:
    """Lists of numbers; None stands for what is undefined."""
    integral = np.issubdtype(values.dtype, np.integer)
    known = values != UNDEFINED if integral else np.isfinite(values)
    listed = values.astype(object)
    listed[~known] = None
    return list(listed.tolist())
