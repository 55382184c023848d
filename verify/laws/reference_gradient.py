"""Derivatives of the reference that more than one law and more than one port need.

They depend on the checkpoint, the precision of the weights and the seed alone: computed once, they
are kept for as long as the checkpoint is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.backward import Backward
from gpt_verify.graph.derivatives import (
    MORE_OBSERVATIONS,
    Derivative,
    Inconsistent,
    derivatives,
)
from gpt_verify.graph.directions import WTE_READERS, Direction, draw
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.draws import OBSERVATIONS
from gpt_verify.numerics.precision import Precision

#: Predictions in all, and at most in one sequence. Short contexts make up for it with more
#: sequences.
_PREDICTIONS, _IN_A_ROW = 16, 8
#: Tokens of a sequence at most.
LENGTH = _IN_A_ROW + 1


@dataclass(frozen=True)
class ReferenceGradient:
    """The reference's derivatives.

    Attributes:
        tokens: int64[B, T], the batch whose mean loss was derived.
        known: one for each tensor in the order of the forward pass; of wte one for each end.
    """

    tokens: NDArray[np.int64]
    known: list[Derivative]

    @cached_property
    def both_ends(self) -> list[Derivative]:
        """The derivative by wte as a whole, where it is known by its two ends."""
        ends = [d for d in self.known if d.direction.tensor == "wte"]
        if len(ends) < 2:
            return []
        first, last = ends
        return [
            Derivative(
                direction=replace(first.direction, sites=WTE_READERS),
                value=first.value + last.value,
                # Their errors may have one cause.
                rounding=first.rounding + last.rounding,
                floor=first.floor + last.floor,
                reach=first.reach + last.reach,
            )
        ]

    @property
    def directions(self) -> list[Direction]:
        """All along which a port's gradient may be asked for."""
        return [known.direction for known in (*self.known, *self.both_ends)]

    def told_apart(self, apart: bool) -> list[Derivative]:
        """The two ends of wte as one where a port knows their sum alone."""
        if apart or not self.both_ends:
            return self.known
        return [d for d in self.known if d.direction.tensor != "wte"] + self.both_ends


def reference_gradient(subject: Subject, surely: bool = False) -> ReferenceGradient:
    """Measured when first asked for.

    Args:
        surely: its noise is observed so often that what is further off is refuted by it alone.

    Raises:
        NotExamined: there is no loss, or nothing to learn.
    """
    batch_of(subject)
    if subject.config.n_vocab < 2:
        raise NotExamined("nothing is learnt: the vocabulary is one token")
    measured, key = subject.weights.memo, ("gradient", subject.precision.name, subject.seed, surely)
    if key not in measured:
        measured[key] = _measure(subject, MORE_OBSERVATIONS if surely else OBSERVATIONS)
    found: ReferenceGradient = measured[key]
    return found


def backward_of(subject: Subject) -> Backward:
    """The backward pass of the same batch, made when first asked for."""
    measured, key = subject.weights.memo, ("backward", subject.precision.name, subject.seed)
    if key not in measured:
        tokens = reference_gradient(subject).tokens
        measured[key] = Backward(subject.config, subject.weights, tokens)
    found: Backward = measured[key]
    return found


def known_derivatives(
    subject: Subject,
    tokens: NDArray[np.int64],
    directions: Sequence[Direction],
    precision: Precision,
    observations: int = OBSERVATIONS,
) -> list[Derivative]:
    """The reference's, along each direction.

    Raises:
        NotExamined: its backward pass and its differences disagree, and neither is believed.
    """
    try:
        return derivatives(
            subject.config, subject.weights, tokens, directions, precision, observations
        )
    except Inconsistent as error:
        raise NotExamined(str(error)) from error


def batch_of(subject: Subject) -> NDArray[np.int64]:
    """int64[B, T], the batch whose mean loss is derived.

    Raises:
        NotExamined: there is no loss.
    """
    if subject.config.n_ctx < 2:
        raise NotExamined("nothing is predicted: the context is one token")
    length = min(subject.config.n_ctx, LENGTH)
    rows = -(-_PREDICTIONS // (length - 1))
    return subject.tokens(rows, length, *b"gradient")


def _measure(subject: Subject, observations: int) -> ReferenceGradient:
    config, tokens = subject.config, batch_of(subject)
    drawn = draw(config, subject.rng(*b"gradient"))
    ends = [d for d in drawn if d.sites != WTE_READERS]
    known = known_derivatives(subject, tokens, ends, subject.precision, observations)
    return ReferenceGradient(tokens, known)
