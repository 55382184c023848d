"""How large the rounding error of one operation may be, element by element.

A budget is the scale of a sub-Gaussian bound: with every elementary rounding an independent
variable of mean zero and magnitude at most u, the error of an element exceeds λ budgets with
probability at most 2 exp(-λ²/2). That is the model of Higham and Mary (2019, "A new approach to
probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), theorem 3.1), kept as a
standard deviation rather than multiplied by λ, so that budgets of independent steps add in
squares. No constant here is fitted to a failure; ``docs/numerics.md`` derives each formula and
shows the distribution of the scores.

Every operation (``gpt_verify.graph.operations``, ``rounding`` of each) takes values together with
the budgets that they already carry (none for a tensor that the port has shown) and returns the
oracle's value in float64 with its budget. Sites that a port does not show are bridged in this way:
a fused attention is scores, pattern and mix in one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.precision import Precision

Floats = NDArray[np.floating]

#: Error of tanh and rsqrt in units of u: between 1 (SLEEF, glibc) and 4 (Eigen's rational tanh,
#: CUDA's single-precision functions).
FUNCTION_ULP = 4.0


@dataclass(frozen=True)
class Measured:
    """A value in float64 and its budget (None where the port itself has shown the value)."""

    value: Floats
    budget: Floats | None = None


def shown(value: NDArray[np.floating]) -> Measured:
    """A tensor that the port has shown: what follows is judged from exactly this, and a copy of
    it, because the port may overwrite its own."""
    return Measured(np.array(value, np.float64))


def measured(p: Precision, value: Floats, variance: Floats) -> Measured:
    """Close an operation: nothing is known below the format's smallest step."""
    if p.u == 2.0**-53:
        # The oracle computes in float64 as well, and its own error is of the same size.
        variance = 2.0 * variance
    return Measured(value, np.maximum(np.sqrt(variance), p.tiny))


def sum_of_squares(x: NDArray[np.floating], w: NDArray[np.floating]) -> Floats:
    """x² @ w², in float32: a budget needs no more than a few digits."""
    x32, w32 = np.asarray(x, np.float32), np.asarray(w, np.float32)
    total = (x32 * x32) @ (w32 * w32)
    if np.isfinite(total).all():
        return np.asarray(total, np.float64)
    # Some square is beyond float32: bring both sides to at most 1 first.
    x_scale, w_scale = _scale(x), _scale(w)
    x32, w32 = (np.asarray(a / s, np.float32) for a, s in ((x, x_scale), (w, w_scale)))
    return np.asarray((x32 * x32) @ (w32 * w32), np.float64) * (x_scale * w_scale) ** 2


def _scale(x: NDArray[np.floating]) -> float:
    largest = float(np.max(np.abs(x), initial=0.0))
    return largest if 0.0 < largest < np.inf else 1.0
