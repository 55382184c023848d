"""One call of a port's loss, and the loss of its own logits, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.loss import Losses

Floats = NDArray[np.floating]
Counted = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """One call of the port's loss.

    Attributes:
        name: for messages.
        losses: of its logits.
        counted: bool[B, T], whether the label of a token is not ignored.
        measured: what the port returned, nats.
        expected: what it should have.
        allowed: by how much the two may differ.
        tokens: int[B, T].
        mask: int[B, T], of a padded batch.
        special: ids of tokens that mean something to somebody.
        unmasked: of the same tokens without a mask, where they are padded and the loss is wrong.
    """

    name: str
    losses: Losses
    counted: Counted
    measured: float
    expected: float
    allowed: float
    tokens: NDArray[np.int64]
    mask: NDArray[np.int64] | None = None
    special: tuple[int, ...] = ()
    unmasked: Losses | None = None

    @property
    def error(self) -> float:
        return self.measured - self.expected

    @property
    def right(self) -> bool:
        """To within what is allowed; nothing that is not finite is right."""
        return math.isfinite(self.error) and abs(self.error) <= self.allowed

    def fits(self, other: float) -> bool:
        """Whether a mistake that gives this loss is what the port made, to within rounding."""
        if math.isnan(other) and math.isnan(self.measured):
            return True
        size = abs(other / self.expected) if self.expected else 1.0
        return abs(self.measured - other) <= self.allowed * max(1.0, size)


def aligned(nats_BT: Floats, shift: int) -> Floats:
    """[B, T] by where the logits are → [B, T] by which token is predicted; NaN for none."""
    found = np.full(nats_BT.shape, np.nan)
    length = nats_BT.shape[1]
    for token in range(length):
        if 0 <= token - shift < length:
            found[:, token] = nats_BT[:, token - shift]
    return found


def mean_loss(losses: Losses, counted: Counted, shift: int = 1) -> float:
    """The loss; or with another shift than 1, a mistake."""
    return mean_of(aligned(losses.nats[shift], shift), counted)


def mean_of(nats_BT: Floats, counted: Counted) -> float:
    used = nats_BT[counted & ~np.isnan(nats_BT)]
    return float(np.mean(used)) if used.size else math.nan


def total(losses: Losses, counted: Counted) -> float:
    return float(np.nansum(np.where(counted, aligned(losses.nats[1], 1), 0.0)))
