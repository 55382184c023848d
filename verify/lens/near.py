"""The distance between two distributions that are nearly the same.

Sums over the vocabulary in which terms of both signs cancel say nothing of a distance that is
smaller than their rounding. Here every term is itself of the size of the distance, and none is
negative beyond its own rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Below this difference of log-probabilities, b − a is taken from it rather than from a and b.
SMALL = 1.0


@dataclass(frozen=True)
class Distances:
    """Distances between pairs of distributions a and b, [M] each, in nats; the total variation is a
    probability."""

    kl_ab: Any
    kl_ba: Any
    js: Any
    total_variation: Any


def distances(xp: Any, a_MV: Any, b_MV: Any) -> Distances:
    """The distances between softmax(a) and softmax(b), row by row.

    With D = ln b − ln a and t = b − a = a (e^D − 1): KL(a ‖ b) = Σ (t − a D), KL(b ‖ a) =
    Σ (b D − t), because Σ t = 0; total variation is Σ |t| / 2. With m = (a + b)/2 and
    ρ = t / (a + b), Jensen–Shannon is Σ m ((1 + ρ) ln(1 + ρ) + (1 − ρ) ln(1 − ρ)) / 2.

    Args:
        xp: ``numpy`` or ``torch``.
        a_MV: finite logits in float64, the largest of each row 0 (or near it).
        b_MV: the same of the others.
    """
    norm_a, norm_b = (xp.log(xp.sum(xp.exp(y), axis=-1, keepdims=True)) for y in (a_MV, b_MV))
    a, b = xp.exp(a_MV - norm_a), xp.exp(b_MV - norm_b)
    d = (b_MV - a_MV) - (norm_b - norm_a)
    t = xp.where(xp.abs(d) < SMALL, a * xp.expm1(xp.clip(d, -SMALL, SMALL)), b - a)
    total = a + b
    # 0/0 where both underflow; 1 + ρ = 0 where one does, and 0 ln 0 is to be 0.
    rho = xp.clip(t / xp.clip(total, 1e-300, None), -1.0 + 2.0**-52, 1.0 - 2.0**-52)
    spread = (1.0 + rho) * xp.log1p(rho) + (1.0 - rho) * xp.log1p(-rho)
    return Distances(
        kl_ab=xp.sum(t - a * d, axis=-1),
        kl_ba=xp.sum(b * d - t, axis=-1),
        js=xp.sum(total * spread, axis=-1) / 4.0,
        total_variation=xp.sum(xp.abs(t), axis=-1) / 2.0,
    )
