"""A head of its own that is not wte: what it is instead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.explanation import Candidate, Explanation

Array = NDArray[np.floating]

#: Nearer than this to wte, in units of wte's RMS, a head was wte once. Unrelated numbers of the
#: same size lie at √2, a head of zeros at 1.
NEAR = 0.5
#: Damage that says of a head no more than that it is not wte.
_NO_MORE = ("weights-random", "weights-missing")


def named(explanation: Explanation, got: Array, expected: Array) -> Explanation:
    """Whatever its values are, a head that is not wte is a head of its own, and near it or not.

    What is known to make it out of wte (rounding, a factor) says more, and is left as it is.

    Args:
        explanation: of the difference, as of any tensor.
        got: the head.
        expected: wte, in the same layout.
    """
    best = explanation.best
    if best is not None and best.fault not in _NO_MORE:
        return explanation
    wide = np.asarray(expected, np.float64)
    size = float(np.sqrt(np.mean(wide**2)))
    apart = float(np.sqrt(np.mean((np.asarray(got, np.float64) - wide) ** 2)))
    near = apart < NEAR * size
    note = f"{apart / size:.2g} of wte's RMS apart" if size else ""
    if best is not None and best.note:
        note = best.note
    fault = "head-noisy" if near else "head-untied"
    return replace(explanation, accepted=(Candidate(fault, 0.0, note),))
