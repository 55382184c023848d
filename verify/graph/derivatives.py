"""How the reference's loss changes when one tensor moves, and how exactly that is known.

The values come from the reference's own backward pass in float64, whose time does not grow with
the number of tensors. It is held to central differences of the same loss, in which all tensors move
at once (``gpt_verify.graph.differences``): an incorrect rule would show there. The noise is
measured with the same backward pass, in the port's precision. Derived in docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.backward import Backward, Noise
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.differences import difference
from gpt_verify.graph.directions import Direction
from gpt_verify.numerics.draws import OBSERVATIONS
from gpt_verify.numerics.precision import FLOAT32, FLOAT64, Precision
from gpt_verify.numerics.recording import run_bytes
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count

#: What the noisy runs that are made side by side may take, at most, and however small the model;
#: in between half of what its weights take. Another number, other noise, but of the same size.
ROOM_BYTES, LEAST_ROOM_BYTES = 768 << 20, 64 << 20
_FLOAT32_BYTES = 4
#: Of the logits of a noisy run, so many copies at its height: they are kept, and so is what comes
#: back to them, of each row and of all rows; a perturbation takes three more to be made.
_LOGITS = 6
#: As often as many the noise is observed before something is refuted by it alone. A softmax between
#: two scores that are nearly as large takes either side by chance, and both sides are correct:
#: errors are then of one size or of another, much larger one, which few draws may miss.
MORE_OBSERVATIONS = 32 * OBSERVATIONS
#: Mean square of a direction's factor, uniform between 1/2 and 1.
_FACTOR_SQUARE = 7 / 12


class Inconsistent(Exception):
    """The reference's backward pass is not what its own differences say; neither is believed."""


@dataclass(frozen=True)
class Derivative:
    """⟨∇L, v⟩ of the mean next-token loss in nats, and how exactly it is known.

    Attributes:
        direction: v.
        value: of the backward pass in float64.
        rounding: what rounding in float64 does to ``value``.
        floor: what rounding in the declared precision does to the same derivative.
        reach: the most that it was seen to do; 0 where it was not looked at.
    """

    direction: Direction
    value: float
    rounding: float
    floor: float
    reach: float = 0.0

    def error(self, finer: float = 1.0) -> float:
        """Scale of what a correct port may be off, the reference's own error included.

        Args:
            finer: unit roundoff of the port's arithmetic ÷ that of the precision of ``floor``.
        """
        return float(np.hypot(self.rounding, self.noise(finer)))

    def noise(self, finer: float = 1.0) -> float:
        """The same, without the reference's own error.

        What noise was seen to do refutes nobody: a correct port is further off than all of n noisy
        runs with probability 1 / (n + 1), however its errors are distributed.
        """
        if finer == 1.0:
            return max(self.floor, self.reach / LIMIT_FLOORS)
        # ``reach`` is not to be scaled: with less noise nothing may take another side.
        return finer * self.floor

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
    observations: int = OBSERVATIONS,
) -> list[Derivative]:
    """Derivatives of the mean next-token loss of a batch along each direction.

    Args:
        config: sizes.
        weights: as a port of this precision holds them.
        tokens_BT: int[B, T], T ≥ 2, every row of the same length.
        directions: any number.
        precision: of the port's arithmetic, for ``Derivative.floor``.
        observations: of its noise, at least; with more than the fewest, the largest error among
            them is kept as well.

    Raises:
        Inconsistent: the backward pass and the differences of the loss disagree.
    """
    with np.errstate(all="ignore"):  # what overflows is not finite, and judged as that
        exact_DB = _along(Backward(config, weights, tokens_BT), directions)[0]
        values = exact_DB.sum(axis=-1)
        # Rounding noise is proportional to u, so float64's floor is float32's, scaled.
        narrow = FLOAT32 if precision.name == "float64" else precision
        seen = _noise(config, weights, tokens_BT, directions, narrow, exact_DB, observations)
        single = seen
        if narrow is not FLOAT32:
            single = _noise(config, weights, tokens_BT, directions, FLOAT32, exact_DB)
        scale = precision.u / narrow.u
        floors, reaches = scale * seen.rms_D, scale * seen.largest_D
        if observations <= OBSERVATIONS:
            reaches = np.zeros_like(reaches)
        rounding = single.rms_D * (FLOAT64.u / FLOAT32.u)
        _check(config, weights, tokens_BT, directions, values, rounding)
    numbers = zip(values, rounding, floors, reaches, strict=True)
    return [Derivative(d, *map(float, n)) for d, n in zip(directions, numbers, strict=True)]


def noise_bytes(config: Config, length: int, batch: int = 1) -> int:
    """What the noisy runs that are made side by side take, at least a batch of them."""
    one = _noisy_bytes(config, length)
    return min(max(_room_bytes(config), batch * one), OBSERVATIONS * one)


def _noisy_bytes(config: Config, length: int) -> int:
    """What one takes, forwards and backwards."""
    logits = _LOGITS * _FLOAT32_BYTES * length * config.n_vocab
    return run_bytes(config, length, _FLOAT32_BYTES) + logits


def _room_bytes(config: Config) -> int:
    half = parameter_count(config) * _FLOAT32_BYTES // 2
    return min(ROOM_BYTES, max(LEAST_ROOM_BYTES, half))


def _along(
    backward: Backward, directions: Sequence[Direction]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each row contributes to each derivative, [directions, rows], and the squares of all that
    is added up in the elements of the gradient."""
    found: dict[int, NDArray[np.float64]] = {}
    squares: dict[int, NDArray[np.float64]] = {}
    by_site: dict[str, list[int]] = {}
    for i, direction in enumerate(directions):
        for site in direction.sites:
            by_site.setdefault(site, []).append(i)
    for read in backward.reads():
        for i in by_site.get(read.site, ()):
            d = directions[i]
            found[i] = found.get(i, 0.0) + np.array(read.by_row(d))
            square = np.array([pulled.square for pulled in read.tensors[d.tensor]])
            squares[i] = squares.get(i, 0.0) + square
    each = range(len(directions))
    return np.array([found[i] for i in each]), np.array([squares[i] for i in each])


@dataclass(frozen=True)
class _Seen:
    """What rounding does to each derivative: its root mean square, and the most among all draws,
    both [directions]."""

    rms_D: NDArray[np.float64]
    largest_D: NDArray[np.float64]


def _noise(
    config: Config,
    weights: DeclaredWeights,
    tokens_BT: NDArray[np.integer],
    directions: Sequence[Direction],
    precision: Precision,
    exact_DB: NDArray[np.float64],
    observations: int = OBSERVATIONS,
) -> _Seen:
    """What rounding does to each derivative.

    The backward pass is run in the port's precision, with everything that a port keeps perturbed at
    random by as much as its rounding may do. Rows of a batch are observations, too; their errors
    may have one cause, so they are added up as if they had.
    """
    batch, length = tokens_BT.shape
    draws = max(2, -(-observations // batch))
    at_once = max(1, _room_bytes(config) // (batch * _noisy_bytes(config, length)))
    squares, sizes = np.zeros(len(directions)), np.zeros(len(directions))
    largest = np.zeros(len(directions))
    for first in range(0, draws, at_once):
        some = min(at_once, draws - first)
        noise = Noise(precision, np.random.default_rng([first, draws]))
        rows_RT = np.tile(tokens_BT, (some, 1))
        noisy, size = _along(Backward(config, weights, rows_RT, noise, batch), directions)
        off = noisy.reshape(len(directions), some, batch) - exact_DB[:, None]
        squares += batch * np.sum(off**2, axis=(1, 2)) / draws
        largest = np.maximum(largest, np.abs(off).sum(axis=2).max(axis=1))
        sizes += size.sum(axis=-1) / draws
    # Each element of the gradient is a sum over the positions, and rounded when it is kept.
    each = precision.u**2 + batch * length * precision.u_sum**2
    squares += _FACTOR_SQUARE * each * sizes
    squares += precision.tiny**2 * np.array([d.square for d in directions])
    return _Seen(np.sqrt(squares), largest)


def _check(
    config: Config,
    weights: DeclaredWeights,
    tokens_BT: NDArray[np.integer],
    directions: Sequence[Direction],
    values: NDArray[np.float64],
    rounding: NDArray[np.float64],
) -> None:
    """The backward pass against central differences of the same loss along Σ scale · v.

    Raises:
        Inconsistent: they disagree.
    """
    found = difference(config, weights, tokens_BT, directions)
    scales = np.array(found.scales)
    expected, own = float(scales @ values), float(np.sqrt(np.sum((scales * rounding) ** 2)))
    error = np.hypot(found.error, own)
    if not (np.isfinite(expected) and np.isfinite(found.value) and np.isfinite(error)):
        return  # what is not finite is not judged either
    if abs(found.value - expected) > LIMIT_FLOORS * error:
        raise Inconsistent(
            f"the reference's backward pass gives {expected:.12g} along all directions, and "
            f"central differences of its loss {found.value:.12g} ± {error:.2g}"
        )
