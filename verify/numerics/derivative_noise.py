"""What rounding in a port's precision does to a derivative: the noise floor of a gradient.

The oracle is run in complex64 with an imaginary step. The imaginary part of every intermediate
value is then its derivative with respect to the step, and both parts are rounded wherever a port
keeps something. A port rounds derivatives that run the other way, from the loss back; why that
comes to the same size is in docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reference import ops
from reference.config import Config
from verify.numerics.directions import Direction
from verify.numerics.precision import FLOAT32, Precision
from verify.numerics.sweep import Array, Batch
from verify.numerics.weights import DeclaredWeights

#: The imaginary step: its square is far below rounding, and it is far above underflow.
STEP = 2.0**-40
#: Predictions whose noise is looked at, at least. With so few degrees of freedom a normal error
#: exceeds ten times its own estimated size with probability 4e-7 (Student's distribution).
OBSERVATIONS = 12


def derivative_noise(
    batch: Batch, directions: Sequence[Direction], exact_DN: Array, precision: Precision
) -> Array:
    """What rounding does to the derivative of the mean loss along each direction, [directions].

    Args:
        batch: in float64.
        directions: as many as rows of ``exact_DN``.
        exact_DN: the derivative of each prediction's loss.
        precision: of the port.
    """
    # Rounding noise is proportional to u, so float64's floor is float32's, scaled.
    narrow = FLOAT32 if precision.name == "float64" else precision
    draws = -(-OBSERVATIONS // exact_DN.shape[1])
    squares = np.zeros(len(directions))
    for draw in range(draws):
        noisy = _Noisy(batch.config, batch.weights, batch.whole_BT, narrow, draw)
        losses = noisy.losses(directions, np.full((len(directions), 1), 1j * STEP))
        unit = STEP * losses.scale
        noise_DN = losses.moved[:, 0].imag / unit[:, None] - exact_DN
        # The errors of the predictions may have one cause: their mean is no smaller than each.
        squares += np.mean(noise_DN**2, axis=-1) / draws
    squares += np.mean((narrow.u * exact_DN) ** 2, axis=-1)
    # A gradient that is too small for the format is off by up to `tiny`, wherever it is kept.
    square = np.array([d.square for d in directions])
    squares += narrow.tiny**2 * (losses.squares[:, 0] / unit**2 + square)
    floors: Array = np.sqrt(squares) * (precision.u / narrow.u)
    return floors


class _Noisy(Batch):
    """The oracle in complex64, in which everything that a port would keep is rounded.

    It is moved at random by as much as rounding may do, so that predictions that are alike (few
    tokens, short sequences) are still as many observations.
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        tokens_BT: NDArray[np.integer],
        precision: Precision,
        draw: int = 0,
    ) -> None:
        self.precision = precision
        super().__init__(config, weights, tokens_BT, np.complex64, draw)

    def keep(self, value: Array, rng: np.random.Generator) -> Array:
        kept = np.empty_like(value)
        kept.real = self.precision.round(value.real + self._moved(value.real, rng))
        # No format's range: that of the derivatives which a port keeps is another one (``tiny``).
        kept.imag = value.imag + self._moved(value.imag, rng)
        return kept

    def layer_norm(self, x_ND: Array, rng: np.random.Generator, g_D: Array, b_D: Array) -> Array:
        """The mean and the deviation are kept, too, and with them, rounded, the backward pass
        centres and projects: an error relative to the derivative *before* the projection, which may
        leave little of it."""
        value = ops.layer_norm(x_ND, g_D, b_D)
        mean_N1, deviation_N1 = _statistics(x_ND.real)
        relative_N1 = 1 + np.abs(mean_N1) / deviation_N1
        value.imag += self._moved(g_D * x_ND.imag / deviation_N1 * relative_N1, rng)
        return value

    def pattern(self, scores: Array, rng: np.random.Generator) -> Array:
        """The derivative of a softmax is p (s' - Σ p s'), and where one source has all the weight
        almost nothing is left of it: an error relative to what is subtracted."""
        value = ops.causal_softmax(scores)
        p, moved = value.real, np.tril(np.abs(scores.imag))
        value.imag += self._moved(p * (moved + np.sum(p * moved, axis=-1, keepdims=True)), rng)
        return value

    def gain(self, x_ND: Array, v_D: Array, rng: np.random.Generator) -> Array:
        """The derivative by a gain is what is normalised with those statistics."""
        mean_N1, deviation_N1 = _statistics(x_ND)
        error = self._moved(v_D * (np.abs(x_ND) + np.abs(mean_N1)) / deviation_N1, rng)
        return super().gain(x_ND, v_D, rng) + error

    def _moved(self, value: Array, rng: np.random.Generator) -> Array:
        """u ξ times the value, ξ between -1 and 1."""
        xi: Array = 2 * rng.random(value.shape, np.float32) - 1
        return value * (xi * np.float32(self.precision.u))


def _statistics(x_ND: Array) -> tuple[Array, Array]:
    """Mean and deviation, as a layer norm divides by it, [N, 1]."""
    variance_N1 = np.var(x_ND, axis=-1, keepdims=True)
    return np.mean(x_ND, axis=-1, keepdims=True), np.sqrt(variance_N1 + ops.LAYER_NORM_EPSILON)
