"""Every tolerance of the tests: what rounding may do, counted or measured, and never chosen.

**Counted**, where both sides are a few sums: γ_n = n u / (1 - n u) bounds the relative error of n
roundings one after the other, in any order (Higham 2002, Accuracy and Stability, lemma 3.1).

**Measured**, where both sides are a whole run. Two correct float64 runs of one function part by
rounding, and how far depends on how the function amplifies it: a norm that does not divide makes
scores of thousands, and a softmax of those is moved a thousand times as far as one of scores near
1. No number of units in the last place is right for all. So the same function is run in float32,
with everything that it keeps perturbed at random by as much as its rounding may do
(``gpt_verify.numerics.draws``), and parts from its own float64 run by float32's noise. Noise is
proportional to u, so float64's is 2^-29 of that. The limit is the one that ports are judged by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt_verify.graph.cascade import LIMIT_FLOORS, CascadeScores
from gpt_verify.numerics.budgets import FUNCTION_ULP
from gpt_verify.numerics.draws import OBSERVATIONS, Rounding
from gpt_verify.numerics.precision import FLOAT32, FLOAT64, Precision
from gpt_verify.reference import Config, forward
from gpt_verify.reference.loss import token_losses_nats

Floats = NDArray[Any]
#: A run: from the arithmetic that it is done in, and from what each value becomes before the next
#: operation reads it, to (site, value) in order.
Run = Callable[[type[np.floating], Callable[[Floats], Floats]], Iterable[tuple[str, Floats]]]


def gamma(roundings: int, u: float = FLOAT64.u) -> float:
    """γ_n: the largest relative error of n roundings."""
    return roundings * u / (1 - roundings * u)


def summed(expected: Any, roundings: int) -> Any:
    """Equal to ``expected``, both sides having been made of numbers of one sign, with at most so
    many roundings each. (Nothing is forgiven near zero, as pytest does unless it is told.)"""
    return pytest.approx(expected, rel=2 * gamma(roundings), abs=0.0)


def nats_apart(logits: Any, terms: int = 1) -> float:
    """By how much two float64 computations of cross entropies of these logits, or of means of up to
    so many of their log-probabilities, may be apart.

    No log-probability is larger than the spread of the logits and log V. The normaliser is a sum of
    V exponentials; exponentials and the logarithm err by up to ``FUNCTION_ULP`` units.
    """
    logits = np.asarray(logits, np.float64)
    size, vocabulary = float(np.ptp(logits, axis=-1).max()), logits.shape[-1]
    roundings = vocabulary + terms + 2 * int(FUNCTION_ULP) + 2
    return 2 * gamma(roundings) * (size + math.log(vocabulary))


def reference_run(weights: Mapping[str, Any], config: Config, tokens_T: Any) -> Run:
    """The reference's forward pass."""
    return lambda dtype, store: forward(weights, config, np.asarray(tokens_T), dtype, store)


class Noise:
    """What rounding in a format does to every site of a run, and errors in units of that.

    Args:
        run: in any arithmetic.
        precision: what the other computation of the same is done in. The caller rounds the
            weights to it.

    Attributes:
        exact: site → the run in float64.
        noise: site → [R, …], by how much each of R runs in that format would part from it.
    """

    def __init__(self, run: Run, precision: Precision = FLOAT64, seed: int = 0) -> None:
        self._u = precision.u
        narrow = FLOAT32 if precision.name == "float64" else precision
        with np.errstate(all="ignore"):
            self.exact = dict(run(np.float64, lambda x: x))
            drawn: dict[str, list[Floats]] = {site: [] for site in self.exact}
            for draw in range(OBSERVATIONS):
                for site, value in run(np.float32, Rounding(narrow, seed, draw)):
                    drawn[site].append(np.asarray(value, np.float64) - self.exact[site])
        self.noise = {site: np.stack(v) * (precision.u / narrow.u) for site, v in drawn.items()}

    def floors(self, site: str, got: Any, counted: Any = True, exact: Any = None) -> float:
        """The error of ``got`` in units of the noise, root mean square over channels, or heads.

        The last rounding, u of the value, counts besides: no draw moves a number that is rounded to
        itself.

        Args:
            counted: which elements are compared.
            exact: what with, where it is not the run itself.
        """
        value = self.exact[site] if exact is None else np.asarray(exact, np.float64)
        got = np.asarray(got, np.float64)
        assert got.shape == value.shape
        value, got, noise = (np.where(counted, x, 0.0) for x in (value, got, self.noise[site]))
        error, budget = got - value, self._u * np.abs(value)
        channels = (error.reshape(-1, 1), noise.reshape(len(noise), -1, 1), budget.reshape(-1, 1))
        scores, heads = CascadeScores(), site.endswith(("attn.scores", "attn.pattern"))
        scores.add(*((error, noise, budget) if error.ndim == 2 or heads else channels))
        return scores.floors()

    def assert_holds(self, site: str, got: Any, what: str = "") -> None:
        """Within what ports are allowed."""
        found = self.floors(site, got)
        assert found <= LIMIT_FLOORS, f"{what or site}: {found:.3g} floors"


#: The imaginary step: its square is far below rounding, and it is far above underflow.
STEP = 2.0**-40


@dataclass(frozen=True)
class Slope:
    """A derivative of the oracle's mean next-token loss, and what rounding does to it."""

    value: float
    floor: float

    def floors(self, got: float) -> float:
        return abs(got - self.value) / self.floor


def slope(
    weights: Mapping[str, Floats],
    config: Config,
    tokens_BT: Any,
    direction: Mapping[str, Floats],
    position: int | None = None,
    precision: Precision = FLOAT64,
) -> Slope:
    """Along any direction, by a complex step, which has no truncation and no cancellation.

    Its noise is measured as ``gpt_verify.numerics.derivative_noise`` does: both parts of everything
    that is kept are rounded, and the errors of the predictions may have one cause.

    Args:
        weights: float64.
        config: sizes.
        tokens_BT: a batch.
        direction: tensor → where it moves; the others stay.
        position: of the one prediction that counts; all of the batch where None.
        precision: of the other computation.
    """

    def run(dtype: type[np.floating], store: Callable[[Floats], Floats]) -> Any:
        wide = np.complex128 if dtype is np.float64 else np.complex64
        perturbed = {name: np.asarray(weights[name], wide) for name in weights}
        for name, values in direction.items():
            perturbed[name] = perturbed[name] + wide(1j * STEP) * values.astype(wide)

        def keep(z: Floats) -> Floats:
            return np.asarray(store(z.real) + 1j * store(z.imag), wide)

        costs = []
        for tokens_T in tokens_BT:
            *_, (_, logits_TV) = forward(perturbed, config, np.asarray(tokens_T), wide, keep)
            costs.append(token_losses_nats(logits_TV, np.asarray(tokens_T)).imag / STEP)
        yield "slopes", np.concatenate(costs)[slice(None) if position is None else [position]]

    known = Noise(run, precision)
    exact, noise = known.exact["slopes"], known.noise["slopes"]
    floor = np.sqrt(np.mean(noise**2) + np.mean((precision.u * exact) ** 2))
    return Slope(float(exact.mean()), float(floor))
