"""A matrix that was never loaded: is it as libraries initialise one?

Random numbers cannot be predicted, but their distribution can. The scale of an initialisation is
known, and so are the moments of a normal and of a uniform distribution; in a matrix of independent
numbers no row and no column is larger than others, and nothing is left of the correct one. A
trained matrix of another model fails most of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.explanation import Candidate
from gpt_verify.numerics.scores import limit_max

Array = NDArray[np.floating]

#: Numbers that are needed to know their scale to within a few per cent.
FEWEST = 1000


@dataclass(frozen=True)
class _Law:
    """A distribution of mean 0.

    Attributes:
        description: for the note.
        deviation: standard deviation.
        fourth: fourth moment of the standardised variable.
        eighth: its eighth.
    """

    description: str
    deviation: float
    fourth: float = 3.0
    eighth: float = 105.0


def _laws(rows: int, columns: int) -> Iterator[_Law]:
    yield _Law("normal, σ = 0.02, as GPT-2 was", 0.02)
    yield _Law("normal, σ = 0.01, as GPT-2's positions were", 0.01)
    yield _Law("normal, σ = 1, as torch.nn.Embedding is", 1.0)
    for n_in in {rows, columns}:
        # U(-a, a): variance a²/3, moments 9/5 and 9 of the standardised variable.
        description = "uniform in ±1/√n, as torch.nn.Linear is"
        yield _Law(description, 1.0 / math.sqrt(3.0 * n_in), 1.8, 9.0)


def initialised(got: Array, expected: Array, limit: float) -> Candidate | None:
    """``weights-random`` where nothing speaks against it, its score at most ``limit``."""
    if got.ndim != 2 or got.size < FEWEST or not np.isfinite(got).all():
        return None
    found = []
    for law in _laws(*got.shape):
        z = _deviations(np.asarray(got, np.float64) / law.deviation, expected, law)
        worst = max(map(abs, z))
        if worst <= limit_max(len(z)):
            found.append(
                Candidate("weights-random", limit * worst / limit_max(len(z)), law.description)
            )
    return min(found, key=lambda candidate: candidate.score, default=None)


def _deviations(x: Array, expected: Array, law: _Law) -> list[float]:
    """In standard errors: mean, scale, fourth moment, unequal rows and columns, and correlation
    with the correct tensor."""
    n, squares = x.size, x * x
    spread = law.fourth - 1.0  # the variance of a square
    found = [
        float(np.mean(x)) * math.sqrt(n),
        float(np.mean(squares) - 1.0) * math.sqrt(n / spread),
        float(np.mean(squares * squares) - law.fourth)
        * math.sqrt(n / (law.eighth - law.fourth**2)),
    ]
    for axis in (0, 1):
        # Mean squares of k lines of m numbers: a chi-square with k degrees of freedom.
        means = np.mean(squares, axis=axis)
        m, k = x.shape[axis], len(means)
        chi_square = float(np.sum((means - 1.0) ** 2)) * m / spread
        found.append((chi_square - k) / math.sqrt(2.0 * k))
    centred = np.asarray(expected, np.float64) - np.mean(expected)
    size = float(np.sqrt(np.sum(centred * centred)))
    if size > 0:
        found.append(float(np.sum(x * centred)) / size)
    return found
