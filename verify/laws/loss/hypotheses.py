"""What a port's losses would be if it had made one of the usual mistakes with them.

Each is computed in float64 from the port's own logits, so that a mistake is named by the number
that it gives and not by the size of the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_verify.laws.explain import Explained, Hypothesis, explain
from gpt_verify.laws.loss.case import Case, Counted, aligned, mean_loss, mean_of, total
from gpt_verify.laws.loss.forms import forms
from gpt_verify.laws.loss.of_labels import MASK_MISTAKES, ignoring
from gpt_verify.numerics.loss import Losses

#: How far ahead of its logits a token may lie: 1 is right.
SHIFTS = (-1, 0, 1, 2)


#: The loss that a mistake gives.
Compute = Callable[[Losses, Counted], float]


@dataclass(frozen=True)
class Mistake:
    """One that is usual with losses.

    Attributes:
        fault: its name in the catalogue of faults.
        description: what is said of it.
        loss: the loss that it gives.
    """

    fault: str
    description: str
    loss: Compute

    def fits(self, cases: Sequence[Case]) -> float | None:
        """It gives every loss of the port by itself."""
        if not any(math.isfinite(case.measured) for case in cases):
            return None
        given = (case.fits(self.loss(case.losses, case.counted)) for case in cases)
        return 0.0 if all(given) else None


def _without(column: int) -> Compute:
    def mistake(losses: Losses, counted: Counted) -> float:
        fewer = counted.copy()
        fewer[:, column] = False
        return mean_loss(losses, fewer)

    return mistake


def _mean_of_rows(losses: Losses, counted: Counted) -> float:
    nats_BT = aligned(losses.nats[1], 1)
    return float(np.mean([mean_of(r, c) for r, c in zip(nats_BT, counted, strict=True)]))


def _over_all_labels(losses: Losses, counted: Counted) -> float:
    batch, length = counted.shape
    return total(losses, counted) / float(batch * (length - 1))


def _ignored_as(token: int) -> Compute:
    """Ignored labels are looked up as another id."""

    def mistake(losses: Losses, counted: Counted) -> float:
        if token not in losses.nats_of:
            return math.nan
        right, wrong = aligned(losses.nats[1], 1), aligned(losses.nats_of[token], 1)
        return mean_of(np.where(counted, right, wrong), np.ones_like(counted))

    return mistake


def _mask_not_shifted(losses: Losses, counted: Counted) -> float:
    late = np.ones_like(counted)
    late[:, 1:] = counted[:, :-1]
    return mean_loss(losses, late)


MISTAKES = (
    Mistake("loss-sum", "it is the sum over the predicted tokens, not their mean", total),
    Mistake(
        "loss-sum-over-rows",
        "it is summed over each sequence and averaged over the batch only",
        lambda losses, counted: total(losses, counted) / len(counted),
    ),
    Mistake(
        "loss-not-shifted",
        "not shifted: each token is predicted from itself",
        lambda losses, counted: mean_loss(losses, counted, 0),
    ),
    Mistake(
        "loss-shifted-twice",
        "shifted by two: each token is predicted from two before it",
        lambda losses, counted: mean_loss(losses, counted, 2),
    ),
    Mistake(
        "loss-shifted-backwards",
        "shifted backwards: each token is predicted from the one after it",
        lambda losses, counted: mean_loss(losses, counted, -1),
    ),
    Mistake("loss-last-token-dropped", "the last token is left out", _without(-1)),
    Mistake("loss-first-token-dropped", "the first prediction is left out", _without(1)),
    Mistake(
        "loss-mean-of-means",
        "it is the mean of each row's mean, so that a token of a short row counts more",
        _mean_of_rows,
    ),
    Mistake(
        "loss-bits",
        "it is in bits (log2), not in nats",
        lambda losses, counted: mean_loss(losses, counted) / math.log(2.0),
    ),
    Mistake(
        "loss-perplexity",
        "it is the perplexity, not its logarithm",
        lambda losses, counted: _exp(mean_loss(losses, counted)),
    ),
    Mistake(
        "loss-sign",
        "it is the log-likelihood, not its negative",
        lambda losses, counted: -mean_loss(losses, counted),
    ),
    Mistake(
        "loss-ignored-in-divisor",
        "ignored labels (-100) are counted in the divisor of the mean",
        _over_all_labels,
    ),
    Mistake(
        "loss-positions-in-divisor",
        "the sum is divided by all positions, also the last, which predicts nothing",
        lambda losses, counted: total(losses, counted) / counted.size,
    ),
    Mistake(
        "loss-ignored-as-token-0", "ignored labels (-100) are taken for token 0", _ignored_as(0)
    ),
    Mistake(
        "loss-ignored-from-the-end",
        "ignored labels (-100) are taken for the hundredth token from the end",
        _ignored_as(-100),
    ),
    Mistake(
        "loss-padding-counted",
        "tokens whose label is ignored (-100), as padding is, are counted",
        lambda losses, counted: mean_loss(losses, np.ones_like(counted)),
    ),
    Mistake(
        "loss-mask-not-shifted",
        "the mask of ignored labels is not shifted: the token after each is ignored",
        _mask_not_shifted,
    ),
)


@dataclass(frozen=True)
class Fitted:
    """A mistake with a number, which was fitted to all of a port's losses.

    Attributes:
        fault: its name in the catalogue of faults.
        description: what is said of it.
    """

    fault: str
    description: str

    def fits(self, cases: Sequence[Case]) -> float | None:
        return 0.0


def explained(cases: Sequence[Case]) -> Explained[Hypothesis[Sequence[Case]]]:
    """What a port may have done: every mistake that by itself gives all of its losses."""
    # Whatever is done to what is not a number makes what is not a number.
    told = any(math.isfinite(case.expected) for case in cases)
    found: Explained[Hypothesis[Sequence[Case]]] = explain(
        cases, [*MISTAKES, *MASK_MISTAKES, *ignoring(cases)] if told else []
    )
    if not found.fitting and told and len(cases) > 1:
        # These have a number to fit, which any one case would determine.
        fitted = (fit(cases) for fit in (_smoothing, _multiple, _clipping))
        found = explain(cases, list(filter(None, fitted)))
    if not found.fitting:
        found = explain(cases, list(forms(cases))[:1])
    return found


def _smoothing(cases: Sequence[Case]) -> Fitted | None:
    """Label smoothing: the same share of the uniform loss in every case."""
    uniform = [mean_of(aligned(c.losses.uniform, 1), c.counted) for c in cases]
    share = _fit([u - c.expected for u, c in zip(uniform, cases, strict=True)], cases)
    if not 0.0 < share < 1.0:
        return None
    smoothed = [c.expected + share * (u - c.expected) for u, c in zip(uniform, cases, strict=True)]
    if not all(case.fits(value) for case, value in zip(cases, smoothed, strict=True)):
        return None
    return Fitted("loss-label-smoothing", f"labels are smoothed, ε = {share:.3g}")


def _multiple(cases: Sequence[Case]) -> Fitted | None:
    """The same factor in every case."""
    factor = 1.0 + _fit([case.expected for case in cases], cases)
    if not all(case.fits(factor * case.expected) for case in cases):
        return None
    return Fitted("loss-scaled", f"every loss is {factor:.6g} times what it should be")


def _clipping(cases: Sequence[Case]) -> Fitted | None:
    """The loss of each token cut at the same number of nats, which is found by bisection."""
    each = [aligned(c.losses.nats[1], 1) for c in cases]
    each = [nats[c.counted & ~np.isnan(nats)] for nats, c in zip(each, cases, strict=True)]
    if not all(nats.size and math.isfinite(c.error) for nats, c in zip(each, cases, strict=True)):
        return None
    total = sum(c.measured for c in cases)
    low, high = 0.0, max(float(nats.max()) for nats in each)
    for _ in range(64):
        middle = (low + high) / 2
        if sum(float(np.minimum(nats, middle).mean()) for nats in each) < total:
            low = middle
        else:
            high = middle
    clipped = [float(np.minimum(nats, high).mean()) for nats in each]
    if not all(case.fits(value) for case, value in zip(cases, clipped, strict=True)):
        return None
    return Fitted("loss-clipped", f"the loss of each token is cut at {high:.6g} nats")


def _fit(directions: Sequence[float], cases: Sequence[Case]) -> float:
    """Least-squares coefficient of the errors on a direction; 0 where there is no direction."""
    d, e = np.array(directions), np.array([case.error for case in cases])
    if not (np.isfinite(d).all() and np.isfinite(e).all() and d.any()):
        return 0.0
    return float(d @ e / (d @ d))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
