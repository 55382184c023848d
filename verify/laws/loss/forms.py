"""What the numbers say of a loss where no fault of the catalogue fits.

Which pairs of a prediction and a token are compared, which function of a token's probability is
averaged, what is added: each with at most one number, which must give all losses of the port.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.laws.loss.case import Case

Floats = NDArray[np.floating]

#: Name → sentence that completes "the port …".
NAMES = {
    "loss-pairs": "compares predictions with other tokens than those that follow",
    "loss-function": "averages another function of the probability of each token",
    "loss-added": "adds something to the loss",
    "loss-chunks": "loses or misweighs what does not fill a chunk",
}
#: Exponents of a focal loss between which it is looked for, and how often the stretch is halved.
LEAST, LARGEST, HALVINGS = -1.0, 16.0, 60
#: Logits of zero, at most.
MOST = 4096
#: The largest deviation of a number from the short one that it stands for.
SHORT = 1e-4


@dataclass(frozen=True)
class Found:
    """One form that gives all losses.

    Attributes:
        fault: its name.
        description: what was found.
    """

    fault: str
    description: str

    def fits(self, cases: object) -> float | None:
        return 0.0


def forms(cases: Sequence[Case]) -> Iterator[Found]:
    """Those that fit, the simplest first. Several calls must be wrong: one determines a number."""
    if not all(math.isfinite(case.measured) for case in cases):
        return
    for words, loss in PAIRS.items():
        if all(case.fits(loss(case)) for case in cases):
            yield Found("loss-pairs", words)
    for words, loss in CHUNKS.items():
        if all(case.fits(loss(case)) for case in cases):
            yield Found("loss-chunks", words)
    if len(cases) < 2 or not all(_nats(case).size for case in cases):
        return
    yield from _focal(cases)
    yield from _more_of_zero(cases)
    for words, each in ADDED.items():
        yield from _added(cases, words, [each(case) for case in cases])


def _predicted(case: Case) -> NDArray[np.bool_]:
    """By where the logits are: whether what they predict counts, [B, T]."""
    found = np.zeros_like(case.counted)
    found[:, :-1] = case.counted[:, 1:]
    return found


def _nats(case: Case) -> Floats:
    nats: Floats = case.losses.nats[1][_predicted(case)]
    return nats


def _mean(values: Floats) -> float:
    return float(np.mean(values)) if values.size else math.nan


# Which pairs


def _across_rows(case: Case) -> float:
    """The last prediction of a row is that of the first token of the next."""
    more = case.losses.across[:-1][case.counted[1:, 0]]
    return _mean(np.concatenate([_nats(case), more]))


def _in_a_circle(case: Case) -> float:
    """As ``roll`` has it: the last prediction of a row is that of its own first token."""
    more = case.losses.around[case.counted[:, 0]]
    return _mean(np.concatenate([_nats(case), more]))


def _last_alone(case: Case) -> float:
    nats, predicted = case.losses.nats[1], _predicted(case)
    return _mean(nats[:, -2][predicted[:, -2]])


def _first_row(case: Case) -> float:
    return _mean(case.losses.nats[1][0][_predicted(case)[0]])


def _not_between_rows(case: Case) -> float:
    """Rows flattened, and the last pair of all left out twice."""
    predicted = _predicted(case)
    predicted[:, -2] = False
    return _mean(case.losses.nats[1][predicted])


PAIRS: dict[str, Callable[[Case], float]] = {
    "the last prediction of a row is compared with the first token of the next row (rows flattened "
    "before the shift)": _across_rows,
    "the last prediction of a row is compared with its own first token (a shift in a circle)": (
        _in_a_circle
    ),
    "only the last token of each row is predicted": _last_alone,
    "only the first row of a batch counts": _first_row,
    "the last prediction of each row is left out": _not_between_rows,
}


# Which part


def _by_chunk(size: int, case: Case) -> tuple[list[Floats], Floats]:
    """Of rows that are flattened, the nats of each whole chunk, and of what is left."""
    predicted = _predicted(case)[:, :-1].ravel()
    nats = case.losses.nats[1][:, :-1].ravel()
    whole = predicted.size // size * size
    chunks = [nats[at : at + size][predicted[at : at + size]] for at in range(0, whole, size)]
    return chunks, nats[whole:][predicted[whole:]]


def _whole_chunks(size: int, case: Case) -> float:
    chunks, left = _by_chunk(size, case)
    return _mean(np.concatenate(chunks) if chunks else left)


def _mean_of_chunks(size: int, case: Case) -> float:
    chunks, left = _by_chunk(size, case)
    return _mean(np.array([_mean(chunk) for chunk in (*chunks, left) if chunk.size]))


#: Sizes of chunks.
SIZES = tuple(2**n for n in range(1, 15))
CHUNKS: dict[str, Callable[[Case], float]] = {
    **{
        f"tokens that do not fill a chunk of {size} are left out": partial(_whole_chunks, size)
        for size in SIZES
    },
    **{
        f"it is the mean over chunks of {size} tokens of each chunk's mean": partial(
            _mean_of_chunks, size
        )
        for size in SIZES
    },
}


# Which function


def _focal(cases: Sequence[Case]) -> Iterator[Found]:
    """(1 - p)^γ times the loss of each token; γ by bisection."""
    nats = [_nats(case) for case in cases]
    total = sum(case.measured for case in cases)

    def made(exponent: float) -> list[float]:
        with np.errstate(all="ignore"):
            return [_mean((-np.expm1(-each)) ** exponent * each) for each in nats]

    low, high = LEAST, LARGEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(made(middle)) > total else (low, middle)
    exponent = _short(low)
    if abs(exponent) > SHORT and _all_fit(cases, made(exponent)):
        yield Found(
            "loss-function", f"(1 - p)^γ times the loss of each token (focal), γ = {exponent:.6g}"
        )


def _more_of_zero(cases: Sequence[Case]) -> Iterator[Found]:
    """So many logits of 0 beside those of the vocabulary, as of a table that was made longer."""
    totals = [case.losses.log_total[_predicted(case)] for case in cases]
    case, total = cases[0], totals[0]

    def made(more: float, of: Floats) -> float:
        return _mean(np.log1p(more * np.exp(-of)))

    low, high = 0.0, float(MOST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if made(middle, total) < case.measured - case.expected else (low, middle)
        )
    count = round(low)
    if 0 < count < MOST and _all_fit(
        cases,
        [one.expected + made(count, of) for one, of in zip(cases, totals, strict=True)],
    ):
        yield Found("loss-function", f"{count} logits of 0 count beside those of the vocabulary")


# What is added


def _square_of_partition(case: Case) -> float:
    return _mean(case.losses.log_total[_predicted(case)] ** 2)


def _square_of_partition_everywhere(case: Case) -> float:
    return _mean(case.losses.log_total**2)


ADDED: dict[str, Callable[[Case], float]] = {
    "is added to the loss": lambda case: 1.0,
    "times the mean square of the logarithm of the partition sum (z-loss)": _square_of_partition,
    "times the mean square of the logarithm of the partition sum (z-loss) of all positions": (
        _square_of_partition_everywhere
    ),
}


def _added(cases: Sequence[Case], words: str, each: Sequence[float]) -> Iterator[Found]:
    """A number times this, by least squares."""
    more, error = np.array(each), np.array([case.measured - case.expected for case in cases])
    if not np.isfinite(more).all() or not more.any():
        return
    factor = _short(float(more @ error / (more @ more)))
    if factor and _all_fit(
        cases, [case.expected + factor * one for case, one in zip(cases, each, strict=True)]
    ):
        yield Found("loss-added", f"{factor:.6g} {words}")


def _all_fit(cases: Sequence[Case], made: Sequence[float]) -> bool:
    return all(case.fits(one) for case, one in zip(cases, made, strict=True))


def _short(value: float) -> float:
    """The number of few digits that it was, if it was one."""
    short = float(f"{value:.3g}")
    return short if abs(value - short) <= SHORT * abs(value) else value
