"""Central differences of the reference's loss, with all tensors perturbed at once: no rule of
differentiation enters, so that the backward pass can be held to them.

The float64 loss is evaluated at θ ± h v, θ ± 2 h v and θ ± 4 h v, and extrapolated to h = 0; how
far that may be off is estimated from the same numbers. Derived in docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.call import Array, Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.run import side_by_side
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config

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
ROUNDS = 5


@dataclass(frozen=True)
class Difference:
    """⟨∇L, Σ scale · v⟩ of the mean next-token loss in nats.

    Attributes:
        value: extrapolated to h = 0.
        truncation: how far the two extrapolations of the order below are apart.
        rounding: what rounding in float64 does to ``value``.
        scales: of each direction, a power of two: a step of 1 changes the result of the operation
            that reads it by about its own size.
        step: h.
    """

    value: float
    truncation: float
    rounding: float
    scales: Sequence[float]
    step: float

    @property
    def error(self) -> float:
        return float(np.hypot(self.truncation, self.rounding))


def difference(
    config: Config,
    weights: DeclaredWeights,
    tokens_BT: NDArray[np.integer],
    directions: Sequence[Direction],
) -> Difference:
    """Move every direction's tensor at once, by as much of its own size each.

    Args:
        config: sizes.
        weights: the tensors.
        tokens_BT: int[B, T], T ≥ 2.
        directions: of different tensors, or of different readers of one.
    """
    step, best = STEP, None
    for _ in range(ROUNDS):
        found, settled = _take(config, weights, tokens_BT, directions, step)
        if best is None or found.error < best.error or not np.isfinite(best.error):
            best = found
        ratio = found.truncation / found.rounding if found.rounding else 0.0
        if not ratio > UNBALANCED and settled:
            break
        # Truncation falls as h⁴ and rounding grows as 1/h: they meet at h / ratio^(1/5).
        step /= 2.0 ** np.ceil(np.log2(max(ratio, 2.0**10)) / 5)
    assert best is not None, "there is a first round"
    return best


def _take(
    config: Config,
    weights: DeclaredWeights,
    tokens_BT: NDArray[np.integer],
    directions: Sequence[Direction],
    step: float,
) -> tuple[Difference, bool]:
    """One ladder, and whether its step is small enough to know its errors."""
    perturbed = _Perturbed(tokens_BT, directions, step * np.concatenate([[0.0], LADDER, -LADDER]))
    losses_RN = perturbed.losses(config, weights)
    unperturbed_N, (up, down) = losses_RN[0], np.split(losses_RN[1:], 2)
    quotients = (up - down) / (2 * step * LADDER[:, None])
    near, middle, far = quotients
    off = ((4 * near - middle) - (4 * middle - far)) / 3
    even = EVEN @ (up + down - 2 * unperturbed_N) / EVEN_NOISE
    by_token = TO_ZERO @ quotients
    least = FLOAT64.u * _rms(unperturbed_N)
    size, spread = _rms(by_token), _rms(off)
    # θ + h v is rounded, too, alike on both sides, which no even part shows: by u in units of its
    # own size, of which the step is h.
    rounding = np.hypot(ODD_NOISE / step * max(_rms(even), least), FLOAT64.u / step * size)
    # Predictions whose truncations cancel in the mean, as these happen to do, are no proof.
    truncation = max(abs(float(off.mean())), spread / np.sqrt(off.size))
    value = float(by_token.mean())
    found = Difference(value, truncation, float(rounding), perturbed.scales, step)
    return found, not spread > UNSETTLED * size


class _Perturbed:
    """Runs of a batch, one for each step; all directions move in each of them.

    Args:
        tokens_BT: the batch.
        directions: what moves.
        steps: of each run, the first of which is 0.
    """

    def __init__(
        self, tokens_BT: NDArray[np.integer], directions: Sequence[Direction], steps: Array
    ) -> None:
        self._tokens_BT, self._directions, self._steps = tokens_BT, directions, steps
        self.scales = [0.0] * len(directions)

    def losses(self, config: Config, weights: DeclaredWeights) -> Array:
        """The losses of each run and prediction in nats, [runs, B (T - 1)]."""
        tokens_RT = np.tile(self._tokens_BT, (len(self._steps), 1))
        for _, value in side_by_side(config, weights, tokens_RT, np.float64, self._perturb):
            logits = value
        logits = logits.reshape(*tokens_RT.shape, -1)[:, :-1]
        peak = logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(logits - peak).sum(axis=-1)) + peak[..., 0]
        target = np.take_along_axis(logits, tokens_RT[:, 1:, None], axis=-1)[..., 0]
        losses: Array = (total - target).reshape(len(self._steps), -1)
        return losses

    def _perturb(self, call: Call, value: Array) -> Array:
        for i, direction in enumerate(self._directions):
            if call.site.name not in direction.sites:
                continue
            effect = made_by(call.site).effect
            assert effect is not None, f"{call.site.name} reads a tensor"
            effect_ND = effect(call, direction)
            unperturbed = slice(len(value) // len(self._steps))
            if not self.scales[i]:
                # The logits are perturbed by about 1, however large they are.
                size = 1.0 if call.site.name == "logits" else _rms(value[unperturbed])
                self.scales[i] = _power_of_two(size, _rms(effect_ND[unperturbed]))
            steps_N = np.repeat(self._steps * self.scales[i], unperturbed.stop)
            value = value + steps_N.reshape(-1, *[1] * (value.ndim - 1)) * effect_ND
        return value


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _power_of_two(size: float, effect: float) -> float:
    """Nearest to size / effect; 1 where either is zero or not finite."""
    ratio = size / effect if effect > 0 else 1.0
    return float(2.0 ** np.round(np.log2(ratio))) if 0 < ratio < np.inf else 1.0
