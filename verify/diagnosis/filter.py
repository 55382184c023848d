"""From logits alone: which known faults are in them, by a matched filter.

The oracle gives the exact deviation d of the logits that each fault would cause. The port's own
deviation e is regressed on it: a port that has the fault gives a coefficient of 1, a correct one
0, however small the deviation is beside the rounding noise. The size of an error never names its
cause; its direction does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.scores import limit_max

Floats = NDArray[np.float64]

#: A coefficient is taken for 1 within this, or within three standard errors. The deviation of a
#: fault is exact, so that only noise and other faults move it.
NEAR_ONE = 0.05
#: Candidates that are fitted together with the best one, to see whether it stands on its own.
RIVALS = 8
#: Deviations that differ by less than this part of the noise are one.
ALIKE = 0.1
#: What a quantising fault may leave of the deviation: the steps that fell to the other side.
QUANTISING = 0.5
#: By which the coefficient falls short of 1, where the deviation is as large as expected, and less
#: like it by as much as that.
QUANTISING_SHORT = QUANTISING**2 / 2
#: Faults that are looked for at most.
MOST = 3


@dataclass(frozen=True)
class Candidate:
    """A fault in some layers, and the deviation that it would cause.

    Attributes:
        fault: name in the catalogue.
        layers: where it is injected; None everywhere.
        deviation_SN: logits with the fault minus logits without, [sequences, elements].
        quantising: the fault rounds coarsely, and not always to the same side
            (``AtSites.quantising``).
    """

    fault: str
    layers: tuple[int, ...] | None
    deviation_SN: Floats
    quantising: bool = False

    @cached_property
    def power_S(self) -> Floats:
        """Sum of the squares of each sequence."""
        return _products(self.deviation_SN, self.deviation_SN)

    @cached_property
    def rms(self) -> float:
        return _norm(self.deviation_SN)

    def __str__(self) -> str:
        if self.layers is None:
            return self.fault
        return f"{self.fault} in layer {', '.join(map(str, self.layers))}"


@dataclass(frozen=True)
class Match:
    """A fault that was found.

    Attributes:
        candidate: which, and where.
        coefficient: of the regression; 1 where the fault is there.
        error: its standard error.
        instead: other faults that would do the same to these logits, as far as noise lets see.
    """

    candidate: Candidate
    coefficient: float
    error: float
    instead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filtered:
    """What the filter found.

    Attributes:
        matches: the faults, strongest first.
        before: RMS deviation of the logits in noise floors.
        after: the same without what the matches explain.
        nearest: the best of those that were not accepted, each with its coefficient and error.
    """

    matches: tuple[Match, ...]
    before: float
    after: float
    nearest: tuple[Match, ...]


class MatchedFilter:
    """Finds the faults whose deviations make up an error.

    Args:
        noise_SN: one realisation of rounding noise for each sequence: the oracle in the port's
            precision minus the oracle.
    """

    def __init__(self, noise_SN: Floats) -> None:
        self._noise_SN = noise_SN
        self._floor = _norm(noise_SN)
        # Many ports of one checkpoint are asked about the same candidates.
        self._known: dict[int, tuple[Candidate, Floats]] = {}

    def find(
        self,
        error_SN: Floats,
        candidates: Sequence[Candidate],
        limit: float,
        floor_of: Callable[[Candidate], float] = lambda candidate: 0.0,
    ) -> Filtered:
        """The faults in one port's logits.

        Args:
            error_SN: the port's logits minus the oracle's, [sequences, elements].
            candidates: what is tried.
            limit: the most noise floors that an explained error leaves.
            floor_of: RMS of what rounding does to the logits of a port that has a fault, which may
                be far more than what it does to the correct ones. Asked for where a name depends on
                it.
        """
        floor = self._floor
        usable = [c for c in candidates if c.rms > 0]
        needed = limit_max(max(1, len(usable)))
        found: list[Match] = []
        rest_SN, nearest = error_SN, []
        while len(found) < MOST:
            taken = [match.candidate for match in found]
            ranked = self._ranked(rest_SN, [c for c in usable if c not in taken])
            nearest = ranked[:3]
            best = next(iter(ranked), None)
            if best is None:
                break
            alike = [match for match in ranked[1:] if _alike(best, match, floor)]
            others = [match for match in ranked if match not in alike]
            if not self._stands(best, others, rest_SN, needed):
                break
            best = replace(best, instead=tuple(str(match.candidate) for match in alike))
            left_SN = error_SN - sum(m.candidate.deviation_SN for m in [*found, best])
            if _norm(left_SN) >= _norm(rest_SN):
                break
            found.append(best)
            rest_SN = left_SN
            nearest = ranked[1:4]
        after, before = (_in_floors(_norm(x), floor) for x in (rest_SN, error_SN))
        if any(match.candidate.quantising for match in found):
            limit = max(limit, QUANTISING * before)
        if found and after > limit and floor > 0:
            limit *= max(1.0, *(floor_of(match.candidate) / floor for match in found))
        if after > limit:  # more than noise is left: a name would be a guess
            nearest, found, after = [*found, *nearest][:3], [], before
        return Filtered(tuple(found), before, after, tuple(nearest))

    def traces(self, error_SN: Floats, candidates: Sequence[Candidate]) -> list[str]:
        """Faults whose deviation is in the error to a part that noise does not make, most alike
        first.

        Of a port with one of them in one layer the candidates are those in all layers: its
        deviation is one term of theirs, as far as they are small.
        """
        power = _norm(error_SN)
        found = []
        for candidate in candidates:
            if candidate.rms == 0.0 or power == 0.0:
                continue
            coefficient = self._fit(candidate, error_SN).coefficient
            if abs(coefficient) > limit_max(len(candidates)) * self._noise_error(candidate):
                found.append((abs(coefficient) * candidate.rms / power, candidate.fault))
        return [fault for _, fault in sorted(found, reverse=True)]

    def _ranked(self, rest_SN: Floats, candidates: Sequence[Candidate]) -> list[Match]:
        """Every candidate with its coefficient, those that leave least first."""
        rated, left_SN = [], np.empty_like(rest_SN)
        for candidate in candidates:
            np.subtract(rest_SN, candidate.deviation_SN, out=left_SN)
            rated.append((_norm(left_SN), self._fit(candidate, rest_SN)))
        rated.sort(key=lambda pair: pair[0])
        return [match for _, match in rated]

    def _fit(self, candidate: Candidate, rest_SN: Floats) -> Match:
        """Coefficient of one deviation, and its standard error.

        The error is the larger of two: how much the coefficient varies from sequence to sequence,
        and how large a coefficient rounding noise alone would get.
        """
        power = float(candidate.power_S.sum())
        product_S = _products(rest_SN, candidate.deviation_SN)
        coefficient = float(product_S.sum()) / power
        left_S = product_S - coefficient * candidate.power_S
        n = len(left_S)
        spread = math.sqrt(float(left_S @ left_S) * n / max(1, n - 1)) / power
        return Match(candidate, coefficient, max(spread, self._noise_error(candidate)))

    def _noise_error(self, candidate: Candidate) -> float:
        """How large a coefficient noise alone would get."""
        by_noise_S = self._by_noise(candidate)
        return float(np.linalg.norm(by_noise_S)) / float(candidate.power_S.sum())

    def _by_noise(self, candidate: Candidate) -> Floats:
        """The inner product of each sequence's deviation with its noise."""
        if id(candidate) not in self._known:
            product_S = _products(self._noise_SN, candidate.deviation_SN)
            self._known[id(candidate)] = candidate, product_S  # which keeps it, and so its id
        return self._known[id(candidate)][1]

    def _stands(self, best: Match, ranked: Sequence[Match], rest_SN: Floats, needed: float) -> bool:
        """The best is there: far from 0, near 1, and so beside each rival, which then is not."""
        near = QUANTISING_SHORT if best.candidate.quantising else NEAR_ONE
        if not _is_one(best.coefficient, best.error, near):
            return False
        if best.coefficient < needed * best.error:
            return False
        for rival in ranked[1 : 1 + RIVALS]:
            fitted = self._together(best.candidate, rival.candidate, rest_SN)
            if fitted is not None and _is_one(*fitted, near) and fitted[0] >= needed * fitted[1]:
                continue
            if not self._instead(best.candidate, rival.candidate, rest_SN, needed):
                return False  # the two cannot be told apart on these inputs
        return True

    def _instead(self, first: Candidate, second: Candidate, rest_SN: Floats, needed: float) -> bool:
        """Of two whose deviations have nearly one direction, as two values of ε have: the first is
        there and not the second. What the first leaves is regressed on the step to the second,
        which would give 1 if it were the second."""
        step = Candidate("", None, second.deviation_SN - first.deviation_SN)
        if step.rms == 0.0:
            return False
        fit = MatchedFilter(self._noise_SN)._fit(step, rest_SN - first.deviation_SN)
        return abs(fit.coefficient) <= max(NEAR_ONE, 3 * fit.error) and needed * fit.error <= 1.0

    def _together(
        self, one: Candidate, other: Candidate, rest_SN: Floats
    ) -> tuple[float, float] | None:
        """The first coefficient of a least-squares fit of two deviations, and its standard
        error."""
        # By sequence: the deviations among themselves, and each of them with something else.
        both_S = _products(one.deviation_SN, other.deviation_SN)
        gram_22S = np.array([[one.power_S, both_S], [both_S, other.power_S]])
        rest_2S = np.array([_products(rest_SN, c.deviation_SN) for c in (one, other)])
        noise_2S = np.array([self._by_noise(c) for c in (one, other)])
        gram = gram_22S.sum(axis=-1)
        if abs(gram[0, 1]) >= (1.0 - 1e-9) * math.sqrt(gram[0, 0] * gram[1, 1]):
            return None
        inverse = np.linalg.inv(gram)
        fitted = inverse @ rest_2S.sum(axis=-1)
        left_2S = rest_2S - np.einsum("i,ijs->js", fitted, gram_22S)
        error = max(float(np.linalg.norm(inverse[0] @ by_S)) for by_S in (left_2S, noise_2S))
        return float(fitted[0]), error


def _in_floors(error: float, floor: float) -> float:
    """No error is none, of what rounding leaves alone as well."""
    return error / floor if floor > 0 else (math.inf if error else 0.0)


def _alike(one: Match, other: Match, floor: float) -> bool:
    """Two faults whose deviations differ by less than noise, and by little of themselves: nobody
    can tell them apart here."""
    # The sizes of two that are alike differ by no more than they do.
    most = min(ALIKE * floor, NEAR_ONE * one.candidate.rms)
    if abs(one.candidate.rms - other.candidate.rms) > 2 * most:
        return False
    return _norm(one.candidate.deviation_SN - other.candidate.deviation_SN) < most


def _is_one(coefficient: float, error: float, near: float) -> bool:
    return abs(coefficient - 1.0) <= max(near, 3 * error)


def _products(a_SN: Floats, b_SN: Floats) -> Floats:
    """The inner product of each sequence."""
    product_S: Floats = np.einsum("sn,sn->s", a_SN, b_SN)
    return product_S


def _norm(x_SN: Floats) -> float:
    """Root mean square."""
    return math.sqrt(float(np.vdot(x_SN, x_SN)) / x_SN.size) if x_SN.size else 0.0
