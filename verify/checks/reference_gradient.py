"""Derivatives of the reference that more than one law and more than one port need.

They depend on the checkpoint, the precision of the weights and the seed alone, and take the longest
of all that the laws compute: measured once, they are kept for as long as the checkpoint is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.weights import parameter_count
from verify.checks.subject import NotExamined, Subject
from verify.numerics.backward import Backward
from verify.numerics.derivatives import Derivative, derivatives
from verify.numerics.directions import WTE_READERS, draw
from verify.numerics.weights import Widened

#: Predictions in all, and at most in one sequence; fewer where a model is large, because the time
#: grows with parameters × predictions. Short contexts make up for it with more sequences.
_PREDICTIONS, _PREDICTIONS_OF_LARGE, _IN_A_ROW = 16, 4, 8
_LARGE = 1 << 24


@dataclass(frozen=True)
class ReferenceGradient:
    """The reference's derivatives.

    Attributes:
        tokens: int64[B, T], the batch whose mean loss was derived.
        known: one for each tensor in the order of the forward pass; of wte one for each end.
    """

    tokens: NDArray[np.int64]
    known: list[Derivative]


def reference_gradient(subject: Subject) -> ReferenceGradient:
    """Measured when first asked for.

    Raises:
        NotExamined: there is no loss, or nothing to learn.
    """
    if subject.config.n_ctx < 2:
        raise NotExamined("nothing is predicted: the context is one token")
    if subject.config.n_vocab < 2:
        raise NotExamined("nothing is learnt: the vocabulary is one token")
    measured, key = subject.weights.memo, ("gradient", subject.precision.name, subject.seed)
    if key not in measured:
        measured[key] = _measure(subject)
    found: ReferenceGradient = measured[key]
    return found


def backward_of(subject: Subject) -> Backward:
    """The same batch on its way back, made when first asked for."""
    measured, key = subject.weights.memo, ("backward", subject.precision.name, subject.seed)
    if key not in measured:
        tokens = reference_gradient(subject).tokens
        measured[key] = Backward(subject.config, Widened(subject.weights), tokens)
    found: Backward = measured[key]
    return found


def _measure(subject: Subject) -> ReferenceGradient:
    config = subject.config
    most = _PREDICTIONS_OF_LARGE if parameter_count(config) > _LARGE else _PREDICTIONS
    length = min(config.n_ctx, most + 1, _IN_A_ROW + 1)
    rows = -(-most // (length - 1))
    tokens = subject.tokens(rows, length, *b"gradient")
    drawn = draw(config, subject.rng(*b"gradient"))
    ends = [d for d in drawn if d.sites != WTE_READERS]
    known = derivatives(config, subject.weights, tokens, ends, subject.precision)
    return ReferenceGradient(tokens, known)
