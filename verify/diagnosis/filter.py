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

import numpy as np
from numpy.typing import NDArray

from verify.numerics.scores import limit_max

Floats = NDArray[np.float64]

#: A coefficient is taken for 1 within this, or within three standard errors. The deviation of a
#: fault is exact, so that only noise and other faults move it.
NEAR_ONE = 0.05
#: Candidates that are fitted together with the best one, to see whether it stands on its own.
RIVALS = 8
#: Deviations that differ by less than this part of the noise are one.
ALIKE = 0.1
#: What a coarse fault may leave of the deviation: the steps that fell to the other side.
COARSE = 0.5
#: By which the coefficient falls short of 1, where the deviation is as large as expected, and less
#: like it by as much as that.
COARSE_SHORT = COARSE**2 / 2
#: Faults that are looked for at most.
MOST = 3


@dataclass(frozen=True)
class Candidate:
    """A fault in some layers, and the deviation that it would cause.

    Attributes:
        fault: name in the catalogue.
        layers: where it is planted; None everywhere.
        deviation_SN: logits with the fault minus logits without, [sequences, elements].
        coarse: the fault rounds coarsely, and not always to the same side (``Fault.coarse``).
    """

    fault: str
    layers: tuple[int, ...] | None
    deviation_SN: Floats
    coarse: bool = False

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


def matched_filter(
    error_SN: Floats,
    noise_SN: Floats,
    candidates: Sequence[Candidate],
    limit: float,
    floor_of: Callable[[Candidate], float] = lambda candidate: 0.0,
) -> Filtered:
    """Find the faults whose deviations make up the error.

    Args:
        error_SN: the port's logits minus the oracle's, [sequences, elements].
        noise_SN: one realisation of rounding noise for each sequence: the oracle in the port's
            precision minus the oracle.
        candidates: what is tried.
        limit: the most noise floors that an explained error leaves.
        floor_of: RMS of what rounding does to the logits of a port that has a fault, which may be
            far more than what it does to the right ones. Asked for where a name depends on it.
    """
    floor = _norm(noise_SN)
    usable = [c for c in candidates if _norm(c.deviation_SN) > 0]
    needed = limit_max(max(1, len(usable)))
    found: list[Match] = []
    rest_SN, nearest = error_SN, []
    while len(found) < MOST:
        taken = [match.candidate for match in found]
        ranked = _ranked(rest_SN, noise_SN, [c for c in usable if c not in taken])
        nearest = ranked[:3]
        best = next(iter(ranked), None)
        if best is None:
            break
        alike = [match for match in ranked[1:] if _alike(best, match, floor)]
        others = [match for match in ranked if match not in alike]
        if not _stands(best, others, rest_SN, noise_SN, needed):
            break
        best = replace(best, instead=tuple(str(match.candidate) for match in alike))
        left_SN = error_SN - sum(m.candidate.deviation_SN for m in [*found, best])
        if _norm(left_SN) >= _norm(rest_SN):
            break
        found.append(best)
        rest_SN = left_SN
        nearest = ranked[1:4]
    after = _norm(rest_SN) / floor if floor > 0 else math.inf
    before = _norm(error_SN) / floor if floor > 0 else math.inf
    if any(match.candidate.coarse for match in found):
        limit = max(limit, COARSE * before)
    if found and after > limit and floor > 0:
        limit *= max(1.0, *(floor_of(match.candidate) / floor for match in found))
    if after > limit:  # more than noise is left: a name would be a guess
        nearest, found, after = [*found, *nearest][:3], [], before
    return Filtered(tuple(found), before, after, tuple(nearest))


def traces(error_SN: Floats, noise_SN: Floats, candidates: Sequence[Candidate]) -> list[str]:
    """Faults whose deviation is in the error to a part that noise does not make, most alike first.

    Of a port with one of them in one layer the candidates are those in all layers: its deviation is
    one term of theirs, as far as they are small.
    """
    power = _norm(error_SN)
    found = []
    for candidate in candidates:
        size = _norm(candidate.deviation_SN)
        if size == 0.0 or power == 0.0:
            continue
        match = _fit(candidate, error_SN, noise_SN)
        by_noise = _noise_error(candidate.deviation_SN, noise_SN)
        if abs(match.coefficient) > limit_max(len(candidates)) * by_noise:
            found.append((abs(match.coefficient) * size / power, candidate.fault))
    return [fault for _, fault in sorted(found, reverse=True)]


def _alike(one: Match, other: Match, floor: float) -> bool:
    """Two faults whose deviations differ by less than noise, and by little of themselves: nobody
    can tell them apart here."""
    deviation_SN = one.candidate.deviation_SN
    step = _norm(deviation_SN - other.candidate.deviation_SN)
    return step < ALIKE * floor and step < NEAR_ONE * _norm(deviation_SN)


def _norm(x_SN: Floats) -> float:
    return float(np.sqrt(np.mean(x_SN * x_SN))) if x_SN.size else 0.0


def _ranked(rest_SN: Floats, noise_SN: Floats, candidates: Sequence[Candidate]) -> list[Match]:
    """Every candidate with its coefficient, those that leave least first."""
    rated = []
    for candidate in candidates:
        match = _fit(candidate, rest_SN, noise_SN)
        rated.append((_norm(rest_SN - candidate.deviation_SN), match))
    rated.sort(key=lambda pair: pair[0])
    return [match for _, match in rated]


def _fit(candidate: Candidate, rest_SN: Floats, noise_SN: Floats) -> Match:
    """Coefficient of one deviation, and its standard error.

    The error is the larger of two: how much the coefficient varies from sequence to sequence, and
    how large a coefficient rounding noise alone would get.
    """
    d_SN = candidate.deviation_SN
    power_S = np.sum(d_SN * d_SN, axis=1)
    power = float(power_S.sum())
    coefficient = float(np.sum(rest_SN * d_SN)) / power
    left_S = np.sum((rest_SN - coefficient * d_SN) * d_SN, axis=1)
    n = len(power_S)
    spread = math.sqrt(float(np.sum(left_S**2)) * n / max(1, n - 1)) / power
    return Match(candidate, coefficient, max(spread, _noise_error(d_SN, noise_SN)))


def _noise_error(d_SN: Floats, noise_SN: Floats) -> float:
    """How large a coefficient noise alone would get."""
    by_sequence = np.sum(noise_SN * d_SN, axis=1)
    return math.sqrt(float(np.sum(by_sequence**2))) / float(np.sum(d_SN * d_SN))


def _stands(
    best: Match, ranked: Sequence[Match], rest_SN: Floats, noise_SN: Floats, needed: float
) -> bool:
    """The best is there: far from 0, near 1, and so beside each rival, which then is not."""
    near = COARSE_SHORT if best.candidate.coarse else NEAR_ONE
    if not _is_one(best.coefficient, best.error, near) or best.coefficient < needed * best.error:
        return False
    for rival in ranked[1 : 1 + RIVALS]:
        pair = (best.candidate.deviation_SN, rival.candidate.deviation_SN)
        fitted = _together(pair, rest_SN, noise_SN)
        if fitted is not None and _is_one(*fitted, near) and fitted[0] >= needed * fitted[1]:
            continue
        if not _instead(pair, rest_SN, noise_SN, needed):
            return False  # the two cannot be told apart on these inputs
    return True


def _instead(pair: tuple[Floats, Floats], rest_SN: Floats, noise_SN: Floats, needed: float) -> bool:
    """Of two whose deviations have nearly one direction, as two values of ε have: the first is
    there and not the second. What the first leaves is regressed on the step to the second, which
    would give 1 if it were the second."""
    step_SN = pair[1] - pair[0]
    if _norm(step_SN) == 0.0:
        return False
    step = _fit(Candidate("", None, step_SN), rest_SN - pair[0], noise_SN)
    return abs(step.coefficient) <= max(NEAR_ONE, 3 * step.error) and needed * step.error <= 1.0


def _is_one(coefficient: float, error: float, near: float) -> bool:
    return abs(coefficient - 1.0) <= max(near, 3 * error)


def _together(
    pair: tuple[Floats, Floats], rest_SN: Floats, noise_SN: Floats
) -> tuple[float, float] | None:
    """The first coefficient of a least-squares fit of two deviations, and its standard error."""
    gram = np.array([[float(np.sum(a * b)) for b in pair] for a in pair])
    if abs(gram[0, 1]) >= (1.0 - 1e-9) * math.sqrt(gram[0, 0] * gram[1, 1]):
        return None
    inverse = np.linalg.inv(gram)
    first, second = inverse @ [float(np.sum(rest_SN * d)) for d in pair]
    left_SN = rest_SN - first * pair[0] - second * pair[1]
    errors = []
    for e_SN in (left_SN, noise_SN):
        by_sequence = np.array([np.sum(e_SN * d, axis=1) for d in pair])
        errors.append(float(np.sqrt(np.sum((inverse[0] @ by_sequence) ** 2))))
    return float(first), max(errors)
