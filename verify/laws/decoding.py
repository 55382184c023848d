"""The oracle, decoding a sequence in pieces with one mistake or another.

A port that decodes wrongly is told what it does wrong only where the oracle with that mistake
departs from the correct logits as the port does: same direction, same size, to within rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.decode import (
    Before,
    KeysValues,
    Positions,
    Sources,
    decode,
    joined,
    right_positions,
    right_sources,
)
from gpt_verify.laws.agreement import LIMIT_PAIR
from gpt_verify.laws.explain import Explained, explain
from gpt_verify.laws.subject import Subject
from gpt_verify.numerics.draws import FOR_POSITIONS, draws, perturbations
from gpt_verify.numerics.weights import Widened
from gpt_verify.reference import ops
from gpt_verify.reference.weights import parameter_count

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]
#: Of a golden section, whose steps narrow an interval to this part of it: so many of them leave a
#: hundred-thousandth.
GOLDEN, STEPS = (math.sqrt(5) - 1) / 2, 24
#: A number of fewer digits than these is preferred where it leaves hardly more.
DIGITS, SHORT = 6, 1.05
#: How far from 1 the coefficient of a recognised mistake may be.
NEAR = 0.1


@dataclass(frozen=True)
class Way:
    """How the pieces of a sequence are decoded; what is left out is right.

    Attributes:
        description: what a port that decodes so does wrong.
        positions: where the tokens of a piece are taken to be.
        sources: what they see.
        layer: the layer whose cached keys and values a layer reads.
        kept: what becomes of keys and values, those of all tokens so far, when a call ends.
        normalise: a layer norm without gain and bias, [n, D]; None is right.
        empty: how many slots that nobody has filled are seen besides, as zeros.
        embedded: by what the embedding of each token of a piece is multiplied; None leaves them.
        scaled: what the scores are multiplied with; None is nothing.
        added: what is added to the scores; None is nothing.
        in_layer: whether ``sources`` and ``kept`` are those of a layer; the others are right.
        elsewhere: what they see in the other layers.
        unbiased: of keys (0) and values (1), those that are cached without their bias.
        joined: the cached keys and values, and those of a call, as one.
        softmax: of scores, -∞ where nothing is seen.
        skipped: whether a block is passed over.
        fault: the name of this mistake in the catalogue of faults, where it has one.
        quantising: it rounds in steps that are far above the noise, not always to the same side.
    """

    description: str
    positions: Positions = right_positions
    sources: Sources = right_sources
    layer: Callable[[int], int] = lambda layer: layer
    kept: Callable[[KeysValues], KeysValues] = lambda kept: kept
    normalise: Callable[[Floats], Floats] | None = None
    empty: Callable[[Before, int], int] = lambda before, n: 0
    embedded: Callable[[Before, int], Floats] | None = None
    scaled: Callable[[Before, int], Floats] | None = None
    added: Callable[[Before, int], Floats] | None = None
    in_layer: Callable[[int], bool] = lambda layer: True
    elsewhere: Sources = right_sources
    unbiased: tuple[int, ...] = ()
    joined: Callable[[KeysValues, KeysValues], KeysValues] = joined
    softmax: Callable[[Before, Floats], Floats] = lambda before, x: ops.softmax(x)
    skipped: Callable[[int], bool] = lambda layer: False
    fault: str = ""
    quantising: bool = False

    def fits(self, evidence: Decoding) -> float | None:
        return evidence.left_by(self)


@dataclass(frozen=True)
class Case:
    """What a port made of a sequence, and what it should have made.

    Attributes:
        pieces: the tokens as they were decoded.
        rows: which positions of them were compared, int[R].
        got_RV: what the port made there.
        expected_RV: the same port, used in a way that it is right in.
        floor_R: noise floors of these positions.
    """

    pieces: Sequence[Tokens]
    rows: NDArray[np.integer]
    got_RV: Floats
    expected_RV: Floats
    floor_R: Floats


#: Nothing is wrong.
RIGHT = Way("")


class Decoding:
    """What a port decoded, as evidence for a ``Way``."""

    def __init__(self, subject: Subject, cases: Sequence[Case], right_way: Way) -> None:
        # The fewest calls first: what departs otherwise nearly always does so there already.
        self._subject, self._cases = subject, sorted(cases, key=lambda case: len(case.pieces))
        self._weights, self._config = Widened(subject.weights), subject.config
        self._rights = [self._decode(case, right_way) for case in self._cases]
        self._predicted: set[bytes] = set()

    def left_by(self, way: Way) -> float | None:
        """What a way leaves of the port's departure from what is right, in noise floors summed over
        the cases; None where it departs otherwise, or as a way that was tried before it.

        As the port does: to within the noise of the correct run, or to within that of the mistaken
        one, whose softmax may hang on the last bit where the correct one's does not, and whose
        coarse rounding on which side of a step a number falls: of a quantising way, at least half
        of the cases that depart are met, and the others in part.
        """
        left, predicted = 0.0, hashlib.sha256()
        met, partly = 0, 0
        for case, right in zip(self._cases, self._rights, strict=True):
            with np.errstate(all="ignore"):  # a token that sees nothing has no softmax
                wrong = self._decode(case, way)
            if right is None or wrong is None:
                return None
            predicted_RV = (wrong - right)[case.rows]
            remainder = _remainder(predicted_RV, case, way.quantising)
            if remainder is None and _near(predicted_RV, case, way.quantising):
                floor_R = np.hypot(case.floor_R, _noise(self._subject, case, way, wrong))
                remainder = _remainder(predicted_RV, replace(case, floor_R=floor_R), way.quantising)
            if remainder is not None:
                met += _departs(case)
            elif way.quantising:
                # A number on the other side of a step is enough for that, in one sequence.
                partly, remainder = partly + 1, _left_in_part(predicted_RV, case)
            if remainder is None:
                return None
            left += remainder
            predicted.update(predicted_RV.tobytes())
        if partly > met:
            return None
        known = predicted.digest() in self._predicted
        self._predicted.add(predicted.digest())
        return None if known else left

    def distance(self, way: Way) -> float:
        """What a way leaves in all, in noise floors (RMS), whether it explains it or not."""
        squares = 0.0
        for case, right in zip(self._cases, self._rights, strict=True):
            with np.errstate(all="ignore"):
                wrong = self._decode(case, way)
            if right is None or wrong is None:
                return np.inf
            measured_RV = case.got_RV.astype(np.float64) - case.expected_RV
            left_R = _floors(measured_RV - (wrong - right)[case.rows], case)
            squares += float(np.mean(left_R**2))
        return float(np.sqrt(squares / len(self._cases))) if np.isfinite(squares) else np.inf

    def _decode(self, case: Case, way: Way) -> Floats | None:
        return decode(self._weights, self._config, case.pieces, way)


def recognise(
    subject: Subject, cases: Sequence[Case], ways: Iterable[Way], right_way: Way = RIGHT
) -> Explained[Way]:
    """The way that departs from the correct one as the port does, in every case: of several the
    closest, of those that come to the same the first."""
    if subject.config.own is not None:
        return Explained()  # this decodes as GPT-2 and GPT do
    return explain(Decoding(subject, cases, right_way), ways)


def read_off(
    subject: Subject,
    cases: Sequence[Case],
    made: Callable[[float], Way],
    tried: Sequence[float],
    right_way: Way = RIGHT,
) -> Way:
    """The way whose number leaves least.

    Args:
        subject: the port.
        cases: what it decoded.
        made: the way with a number.
        tried: numbers of one sign in rising order; the one that is sought is near one of them.
        right_way: nothing is wrong.
    """
    if subject.config.own is not None:
        return made(tried[0])
    evidence = Decoding(subject, cases, right_way)

    @cache
    def left(number: float) -> float:
        return evidence.distance(made(number))

    at = min(range(len(tried)), key=lambda i: left(tried[i]))
    low, high = tried[max(at - 1, 0)], tried[min(at + 1, len(tried) - 1)]
    for _ in range(STEPS):
        one, other = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if left(one) < left(other):
            high = other
        else:
            low = one
    least = min((low, high, tried[at]), key=left)
    # Whoever wrote it wrote a short number, and noise has moved it.
    short = (float(f"{least:.{digits}g}") for digits in range(1, DIGITS))
    return made(next((n for n in short if left(n) <= SHORT * left(least)), least))


def _remainder(predicted_RV: Floats, case: Case, quantising: bool) -> float | None:
    """What a mistake leaves unexplained of the port's departure, in noise floors (RMS).

    None where it does not explain it: the remainder is above the noise at some position (of a
    quantising one, above a tenth of what there is), or the coefficient is not near 1.
    """
    if not np.isfinite(predicted_RV).all():
        return None
    measured_RV = case.got_RV.astype(np.float64) - case.expected_RV
    left_R = _floors(measured_RV - predicted_RV, case)
    measured_R = _floors(measured_RV, case)
    steps_R = NEAR * measured_R if quantising else np.zeros_like(left_R)
    if (left_R > np.maximum(LIMIT_PAIR, steps_R)).any():
        return None
    if max(measured_R.max(), _floors(predicted_RV, case).max()) > LIMIT_PAIR:
        size = float((predicted_RV**2).sum())
        if not size or abs(float((measured_RV * predicted_RV).sum()) / size - 1) > NEAR:
            return None
    return float(np.sqrt(np.mean(left_R**2)))


def _departs(case: Case) -> bool:
    """Whether the port departs from what is right by more than noise."""
    return bool(_floors(case.got_RV.astype(np.float64) - case.expected_RV, case).max() > LIMIT_PAIR)


def _left_in_part(predicted_RV: Floats, case: Case) -> float | None:
    """What a prediction leaves, in noise floors (RMS), that points where the port departs to and
    leaves less than there was; None of another one."""
    measured_RV = case.got_RV.astype(np.float64) - case.expected_RV
    size, common = float((predicted_RV**2).sum()), float((measured_RV * predicted_RV).sum())
    left = float(((measured_RV - predicted_RV) ** 2).sum())
    near = 0.5 * size < common < 1.5 * size
    if not (np.isfinite(left) and near and left < float((measured_RV**2).sum())):
        return None
    return float(np.sqrt(np.mean(_floors(measured_RV - predicted_RV, case) ** 2)))


def _near(predicted_RV: Floats, case: Case, quantising: bool) -> bool:
    """Whether little is left of the port's departure, so that it is worth while to ask how much
    noise would leave: of a quantising one, less than half."""
    measured_RV = case.got_RV.astype(np.float64) - case.expected_RV
    left = float(np.linalg.norm(measured_RV - predicted_RV))
    return left <= (0.5 if quantising else NEAR) * float(np.linalg.norm(measured_RV))


def _noise(subject: Subject, case: Case, way: Way, exact_TV: Floats) -> Floats:
    """RMS over the vocabulary of what rounding does to a mistaken run, [R]: as much as moving all
    weights by a rounding does, drawn as ``gpt_verify.numerics.draws`` says."""
    config, squares_R = subject.config, np.zeros(len(case.rows))
    work = len(exact_TV) * parameter_count(config)
    count = draws(len(case.rows), work, FOR_POSITIONS)
    for draw in range(count):
        perturbed = decode(_Perturbed(subject, draw), config, case.pieces, way)
        assert perturbed is not None, "the positions of this way exist"
        squares_R += np.mean((perturbed - exact_TV)[case.rows] ** 2, axis=-1) / count
    # Of a way that rounds coarsely, few draws take a number to the other side at any one position.
    return np.sqrt(np.maximum(squares_R, squares_R.mean()) if way.quantising else squares_R)


class _Perturbed(Mapping[str, Floats]):
    """The weights, each perturbed at random by as much as rounding may do."""

    def __init__(self, subject: Subject, draw: int) -> None:
        self._weights, self._precision = Widened(subject.weights), subject.precision
        self._seed = subject.seed, draw

    def __getitem__(self, name: str) -> Floats:
        rng = np.random.default_rng([*self._seed, *name.encode()])
        value = self._weights[name].astype(np.float64)
        return value + perturbations(value, self._precision, rng)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _floors(difference_RV: Floats, case: Case) -> Floats:
    floors_R: Floats = np.sqrt(np.mean(difference_RV**2, axis=-1)) / case.floor_R
    return floors_R
