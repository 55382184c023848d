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
from reference.weights import parameter_count
from verify.numerics.directions import Direction
from verify.numerics.draws import draws, moves
from verify.numerics.precision import FLOAT32, Precision
from verify.numerics.sweep import Array, Batch
from verify.numerics.weights import DeclaredWeights

#: The imaginary step: its square is far below rounding, and it is far above underflow.
STEP = 2.0**-40


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
    count = draws(exact_DN.shape[1], exact_DN.size * parameter_count(batch.config))
    squares = np.zeros(len(directions))
    for draw in range(count):
        noisy = _Noisy(batch.config, batch.weights, batch.whole_BT, narrow, draw)
        losses = noisy.losses(directions, np.full((len(directions), 1), 1j * STEP))
        unit = STEP * losses.scale
        noise_DN = losses.moved[:, 0].imag / unit[:, None] - exact_DN
        # The errors of the predictions may have one cause: their mean is no smaller than each.
        squares += np.mean(noise_DN**2, axis=-1) / count
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
        kept.real = self.precision.round(value.real + moves(value.real, self.precision, rng))
        # No format's range: that of the derivatives which a port keeps is another one (``tiny``).
        kept.imag = value.imag + moves(value.imag, self.precision, rng)
        return kept

    def layer_norm(self, x_ND: Array, rng: np.random.Generator, g_D: Array, b_D: Array) -> Array:
        """The mean and the deviation are kept, too, and with them, rounded, the backward pass
        centres and projects: an error relative to the derivative *before* the projection, which may
        leave little of it."""
        value = ops.layer_norm(x_ND, g_D, b_D)
        mean_N1, deviation_N1 = _statistics(x_ND.real)
        relative_N1 = 1 + np.abs(mean_N1) / deviation_N1
        before = g_D * x_ND.imag / deviation_N1
        value.imag += moves(before * relative_N1, self.precision, rng)
        return value

    def pattern(self, scores: Array, rng: np.random.Generator) -> Array:
        """The derivative of a softmax is p (s' - Σ p s'), and where one source has all the weight
        almost nothing is left of it: an error relative to what is subtracted."""
        value = ops.causal_softmax(scores)
        p, moved = value.real, np.tril(np.abs(scores.imag))
        before = p * (moved + np.sum(p * moved, axis=-1, keepdims=True))
        value.imag += moves(before, self.precision, rng)
        return value

    def gain(self, x_ND: Array, v_D: Array, rng: np.random.Generator) -> Array:
        """The derivative by a gain is what is normalised with those statistics."""
        mean_N1, deviation_N1 = _statistics(x_ND)
        before = v_D * (np.abs(x_ND) + np.abs(mean_N1)) / deviation_N1
        return super().gain(x_ND, v_D, rng) + moves(before, self.precision, rng)

    def cancelled(self, x_RND: Array, rng: np.random.Generator) -> Array:
        """The derivative of the loss by the last state is the mean of all rows of the head, as
        likely as their tokens are, less the row of the target. Rows that are alike leave nothing of
        it but an error relative to what is subtracted, channel by channel; and that of a sum over
        all."""
        rows_ND, p = self.weights[self.config.head][self.targets_N], self.precision
        terms_RN = np.sqrt(np.sum((rows_ND * x_RND.imag) ** 2, axis=-1))
        sums = np.sqrt(self.config.n_vocab) * p.u_sum / p.u
        return 1j * moves(terms_RN * np.hypot(1.0, sums), p, rng)


def _statistics(x_ND: Array) -> tuple[Array, Array]:
    """Mean and deviation, as a layer norm divides by it, [N, 1]."""
    variance_N1 = np.var(x_ND, axis=-1, keepdims=True)
    return np.mean(x_ND, axis=-1, keepdims=True), np.sqrt(variance_N1 + ops.LAYER_NORM_EPSILON)
