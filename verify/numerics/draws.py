"""Noise that is drawn more than once.

What rounding does to a run is measured by running the oracle in the port's precision. One such run
is one draw: few numbers (a short sequence, a narrow model), or numbers that are all alike (equal
embeddings), are rounded once, by chance hardly at all, and any correct port then looks wrong. So
everything that is kept is perturbed at random besides, by as much as its rounding may do (Monte
Carlo arithmetic: Parker 1997, "Monte Carlo Arithmetic: exploiting randomness in floating-point
arithmetic", UCLA CSD-970002). That makes equal numbers as many observations, and where there are
few of them, or more cost little, the noise is drawn again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.precision import Precision

Floats = NDArray[np.floating]

#: Observations of a noise, at least. With so few degrees of freedom a normal error exceeds ten
#: times its own estimated size with probability 4e-7 (Student's distribution).
OBSERVATIONS = 12


#: Multiplications that all draws together may take beyond the fewest: where single positions are
#: looked at, and elsewhere. In a small model what happens may hang on one number at one position, a
#: score that is nearly as large as another; a large one has many heads, and needs fewer draws.
FOR_POSITIONS, FOR_ALL = 1 << 33, 1 << 26


def draws(in_one: int, multiplications: int, afforded: int = FOR_ALL) -> int:
    """How often a noise is drawn.

    Args:
        in_one: observations that one draw holds, if they are independent.
        multiplications: that one draw takes.
        afforded: see above.
    """
    fewest = -(-OBSERVATIONS // in_one)
    return max(fewest, min(OBSERVATIONS, afforded // multiplications))


def perturbations(values: Floats, precision: Precision, rng: np.random.Generator) -> Floats:
    """u ξ times the values, ξ between -1 and 1."""
    xi: Floats = rng.random(values.shape, np.float32)
    # In its own memory: the patterns of a long sequence are large.
    xi *= 2
    xi -= 1
    xi *= np.float32(precision.u)
    return np.multiply(values, xi, out=xi if values.dtype == xi.dtype else None)


class Rounding:
    """Rounds to a format what was perturbed by as much as that may do; another seed, another
    draw."""

    def __init__(self, precision: Precision, *seed: int) -> None:
        self._precision, self._rng = precision, np.random.default_rng(seed)

    def __call__(self, values: Floats) -> Floats:
        perturbed = perturbations(values, self._precision, self._rng)
        perturbed += values
        return self._precision.round(perturbed)
