"""When two arrays are the same computation, where no error budget is at hand.

Different programs that compute one formula in float64 agree to about 1e-15, and different formulas
differ by 1e-7 (an ε) or more. Half of a format's digits lie between the two, with room on both
sides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

#: Largest relative distance of the same computation in float64, and in float32.
SAME, SAME_FLOAT32 = 2.0**-26, 2.0**-12


def distance(a: ArrayLike, b: ArrayLike) -> float:
    """Largest difference as a fraction of the largest entry; infinite where one is not finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    difference, size = float(np.abs(a - b).max()), float(np.abs(b).max())
    return difference / size if size else difference
