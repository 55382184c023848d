"""How the reference's loss changes when one tensor moves: central differences, with their errors.

There is no backward pass here. The float64 loss is evaluated at θ ± h v, θ ± 2 h v and θ ± 4 h v,
and extrapolated to h = 0; how far that may be off is estimated from the same numbers. What rounding
in a port's precision does to such a derivative is measured too. Derived in docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from verify.numerics.derivative_noise import derivative_noise
from verify.numerics.directions import Direction
from verify.numerics.precision import FLOAT64, Precision
from verify.numerics.sweep import Array, Batch
from verify.numerics.weights import DeclaredWeights

#: Steps of the three differences, in units of h.
LADDER = np.array([1.0, 2.0, 4.0])
#: Extrapolates their quotients to h = 0: the terms in h² and h⁴ cancel.
TO_ZERO = np.array([64.0, -20.0, 1.0]) / 45
#: What cancels the terms in h² and h⁴ of the even parts L(θ + h v) + L(θ - h v) - 2 L(θ), and so
#: leaves their rounding; its size if each loss had an error of 1.
EVEN = np.array([64.0, -20.0, 1.0])
EVEN_NOISE = float(np.sqrt(2 * np.sum(EVEN**2) + (2 * np.sum(EVEN)) ** 2))
#: Size of the extrapolated derivative if each loss had an error of 1, times h.
ODD_NOISE = float(np.sqrt(np.sum((TO_ZERO / LADDER) ** 2) / 2))
#: h at first, in units of the size of what moves.
STEP = 2.0**-12
#: A difference whose truncation exceeds its rounding this many times is taken again, closer.
UNBALANCED = 16.0
#: And one whose truncation is more than so much of the derivative, prediction by prediction: where
#: a step is that large, what is taken for rounding is truncation, too.
UNSETTLED = 2.0**-10
ROUNDS = 3


@dataclass(frozen=True)
class Derivative:
    """⟨∇L, v⟩ of the mean next-token loss in nats, and how exactly it is known.

    Attributes:
        direction: v.
        value: extrapolated to h = 0.
        truncation: how far the two extrapolations of the order below are apart.
        rounding: what rounding in float64 does to ``value``.
        floor: what rounding in the declared precision does to the same derivative.
        step: h, in units of the size of what moves.
    """

    direction: Direction
    value: float
    truncation: float
    rounding: float
    floor: float
    step: float

    def error(self, finer: float = 1.0) -> float:
        """Scale of what a correct port may be off, the reference's own error included.

        Args:
            finer: unit roundoff of the port's arithmetic ÷ that of the precision of ``floor``.
        """
        return float(np.hypot(np.hypot(self.truncation, self.rounding), finer * self.floor))

    def floors(self, got: float, finer: float = 1.0) -> float:
        """|got - value| in units of ``error``.

        Infinite where ``got`` is not finite, and NaN, which exceeds no limit and is within none,
        where the reference is not.
        """
        error, difference = self.error(finer), abs(got - self.value)
        if not np.isfinite(error) or not np.isfinite(self.value):
            return float("nan")
        if not np.isfinite(difference):
            return float("inf")
        if difference == 0.0:
            return 0.0
        return difference / error if error else float("inf")


def derivatives(
    config: Config,
    weights: DeclaredWeights,
    tokens_BT: NDArray[np.integer],
    directions: Sequence[Direction],
    precision: Precision,
) -> list[Derivative]:
    """Derivatives of the mean next-token loss of a batch along each direction.

    Args:
        config: sizes.
        weights: as a port of this precision holds them.
        tokens_BT: int[B, T], T ≥ 2, every row of the same length.
        directions: any number; memory and time grow with it.
        precision: of the port's arithmetic, for ``Derivative.floor``.
    """
    with np.errstate(all="ignore"):  # what overflows is not finite, and judged as that
        batch = Batch(config, weights, tokens_BT)
        found = _Differences.take(batch, directions, np.full(len(directions), STEP))
        for _ in range(ROUNDS):
            rounding = np.where(found.unsettled, found.least, found.rounding)
            ratio = found.truncation / rounding
            (again,) = np.nonzero(ratio > UNBALANCED)
            if not len(again):
                break
            # Truncation falls as h⁴ and rounding grows as 1/h: they meet at h / ratio^(1/5).
            smaller = 2.0 ** np.ceil(np.log2(ratio[again]) / 5)
            some = [directions[int(i)] for i in again]
            found.improve(again, _Differences.take(batch, some, found.step[again] / smaller))
        floor = derivative_noise(batch, directions, found.by_token, precision)
    return [
        Derivative(d, *map(float, numbers))
        for d, *numbers in zip(
            directions,
            found.by_token.mean(axis=-1),
            found.truncation,
            found.rounding,
            floor,
            found.step,
            strict=True,
        )
    ]


@dataclass
class _Differences:
    """Central differences of several directions; all but ``step`` for a step of v itself.

    Attributes:
        by_token: the derivative of each prediction's loss, [directions, N].
        truncation: of their mean, [directions].
        rounding: of their mean, [directions].
        least: the same if the losses were exact but for their last bit, [directions].
        unsettled: whether the step is too large to know either, [directions].
        step: h, [directions].
    """

    by_token: Array
    truncation: Array
    rounding: Array
    least: Array
    unsettled: Array
    step: Array

    @classmethod
    def take(cls, batch: Batch, directions: Sequence[Direction], step: Array) -> _Differences:
        ladder = np.concatenate([LADDER, -LADDER])
        losses = batch.losses(directions, step[:, None] * ladder)
        up, down = np.split(losses.moved, 2, axis=1)
        quotients = (up - down) / (2 * step[:, None, None] * LADDER[:, None])
        quotients /= losses.scale[:, None, None]
        near, middle, far = np.moveaxis(quotients, 1, 0)
        off = ((4 * near - middle) - (4 * middle - far)) / 3
        even = np.einsum("k,dkn->dn", EVEN, up + down - 2 * losses.unmoved) / EVEN_NOISE
        # Like in all runs, and mixed with what is left of the even parts only where h is too large.
        noise = np.median(np.sqrt(np.mean(even**2, axis=-1))) if len(even) else 0.0
        least = FLOAT64.u * np.sqrt(np.mean(losses.unmoved**2))
        by_token = np.einsum("k,dkn->dn", TO_ZERO, quotients)
        size = np.sqrt(np.mean(by_token**2, axis=-1))
        # θ + h v is rounded, too, alike on both sides, which no even part shows: by u in units of
        # its own size, of which the step is h.
        moved, unit = FLOAT64.u / step * size, ODD_NOISE / (step * losses.scale)
        # Predictions whose truncations cancel in the mean, as these happen to do, are no proof.
        spread = np.sqrt(np.mean(off**2, axis=-1))
        return cls(
            by_token=by_token,
            truncation=np.maximum(np.abs(off.mean(axis=-1)), spread / np.sqrt(off.shape[-1])),
            rounding=np.hypot(unit * max(noise, least), moved),
            least=np.hypot(unit * least, moved),
            unsettled=spread > UNSETTLED * size,
            step=step,
        )

    def improve(self, where: Array, other: _Differences) -> None:
        """Take over what is known better there."""
        before = np.hypot(self.truncation[where], self.rounding[where])
        better = np.hypot(other.truncation, other.rounding) < before
        for field in fields(self):
            getattr(self, field.name)[where[better]] = getattr(other, field.name)[better]
