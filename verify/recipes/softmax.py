"""The softmax: of scores in float32 or cast first, in one kernel or step by step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.recipes.arithmetic import Span, exact, total
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference import ops

Seen = NDArray[np.bool_]


def seen(read: Read, scores: Span) -> Seen:
    """Which sources count for each target, [T, S]."""
    assert read.site.layer is not None, "a pattern belongs to a layer"
    t, s = scores.mid.shape[-2:]
    return ops.sees((t, s), read.config.window(read.site.layer))


def weights(scores: Span, counts: Seen) -> Span:
    """exp(score - largest) of what counts, 0 of the rest."""
    return shifted(scores, counts).map(np.exp, FLOAT32.exp_ulp).select(counts)


def short_weights(scores: Span, counts: Seen, lanes: int) -> Span:
    """The same by a polynomial of three terms, so many at a time; what is left of a row is done
    by itself, with the exponential of the C library.

    Args:
        scores: [H, T, S].
        counts: which of them do.
        lanes: of the processor's vectors, 8 or 16.
    """
    away = shifted(scores, counts)
    whole, short = weights(scores, counts), away.map(_short_exponential, _short_units(away))
    t, s = counts.shape
    rows = next(rows for least, rows in _ROWS if t >= least)
    left = np.arange(s) >= s - s % lanes
    alone = left & (np.arange(t) >= t - (t % rows or rows))[:, None]
    return Span(
        *(
            np.where(alone, one, other)
            for one, other in zip(_ends(whole), _ends(short), strict=True)
        )
    ).select(counts)


def _ends(x: Span) -> tuple[NDArray[np.floating], ...]:
    return x.low, x.mid, x.high


#: ATen ``native/cpu/FlashAttentionKernel.cpp``: queries, and how many of them are taken at a time;
#: only the last of them have a row that ends where the keys do.
_ROWS = ((768, 256), (192, 64), (0, 32))
#: ATen ``cpu/vec/vec512/vec512_float.h``, ``fexp_u20``, which torch's fused attention takes in half
#: precision: what it takes from the fraction of the exponent in base 2, Horner's coefficients.
_SHORT = (-0.079204240219773236, -0.22433836478672356, 0.30354260500649682, 0.00010703434948458272)
_LOG2_E = 1 / float(np.log(2.0))
#: It puts exponent and fraction into one number near 2^30, whose steps in float32 are 2^7: half of
#: that is 2^-17 of the fraction, 2^7 units. One for each rounding of the polynomial, and as many
#: for the exponent as it is long.
_SHORT_UNITS = 2.0**7 + 4


def _short_units(away: Span) -> NDArray[np.floating]:
    return np.asarray(_SHORT_UNITS - _LOG2_E * away.low)


def _short_exponential(x: NDArray[np.floating]) -> NDArray[np.floating]:
    exponent = _LOG2_E * x
    exponent = exponent - np.polyval(_SHORT, exponent - np.floor(exponent))
    whole = np.floor(exponent)
    return np.asarray(np.exp2(whole) * (1 + exponent - whole))


def shifted(scores: Span, counts: Seen) -> Span:
    """The distance of what counts from the largest."""

    def largest(x: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.asarray(np.max(np.where(counts, x, -np.inf), axis=-1, keepdims=True))

    return (scores.select(counts) - scores.each(largest)).select(counts)


def _float32(scores: Span, counts: Seen, read: Read) -> Span:
    made = weights(scores, counts)
    return made / total(made)


def _weights_stored(scores: Span, counts: Seen, read: Read) -> Span:
    made = weights(scores, counts).store(read.declared)
    return made / total(made)


def _steps(scores: Span, counts: Seen, read: Read) -> Span:
    p = read.declared
    made = shifted(scores, counts).store(p).map(np.exp, FLOAT32.exp_ulp).store(p).select(counts)
    return made / total(made).store(p)


def _steps_reciprocal(scores: Span, counts: Seen, read: Read) -> Span:
    """As Eigen's: times the reciprocal of the sum, which is stored as well."""
    p = read.declared
    made = shifted(scores, counts).store(p).map(np.exp, FLOAT32.exp_ulp).store(p).select(counts)
    return made * (exact(1.0) / total(made).store(p)).store(p)


def _sum_stored(scores: Span, counts: Seen, read: Read) -> Span:
    made = weights(scores, counts)
    return made.store(read.declared) / total(made).store(read.declared)


def _shift_stored(scores: Span, counts: Seen, read: Read) -> Span:
    away = shifted(scores, counts).store(read.declared)
    made = away.map(np.exp, FLOAT32.exp_ulp).select(counts)
    return made / total(made)


Way = Callable[[Span, Seen, Read], Span]


def _pattern(read: Read, way: Way, cast: bool) -> Span:
    scores = read.input()
    scores = scores.store(read.declared) if cast else scores
    counts = seen(read, scores)
    if not read.site.weights:
        return way(scores, counts, read)
    sinks_H = read.tensor(0)
    shape = (*scores.mid.shape[:2], 1)
    every = Span(
        *(
            np.concatenate([x, np.broadcast_to(sinks_H[:, None, None], shape)], axis=-1)
            for x in (scores.low, scores.mid, scores.high)
        )
    )
    counts = np.concatenate([counts, np.ones((len(counts), 1), np.bool_)], axis=-1)
    return way(every, counts, read).each(lambda x: x[..., :-1])


_WAYS: tuple[tuple[str, str, Way], ...] = (
    ("float32", "in float32", _float32),
    ("shift-stored", "in float32, of scores less their largest in {half}", _shift_stored),
    ("exponentials-stored", "with exponentials in {half}, their sum in float32", _weights_stored),
    ("sum-stored", "with exponentials and their sum in {half}", _sum_stored),
    ("steps", "with every step stored in {half}", _steps),
    (
        "steps-reciprocal",
        "with every step stored in {half}, times the reciprocal of the sum",
        _steps_reciprocal,
    ),
)

PATTERN = (
    *(Recipe(name, words, partial(_pattern, way=way, cast=False)) for name, words, way in _WAYS),
    *(
        Recipe(
            f"cast-{name}",
            f"{words}, of scores cast to {{half}}",
            partial(_pattern, way=way, cast=True),
            plain=name,
        )
        for name, words, way in _WAYS
    ),
)


def fused(read: Read, scores: Span, stored: bool, lanes: int) -> tuple[Span, Span]:
    """Weights that are not yet divided, and what they are divided by, of a fused attention."""
    counts = seen(read, scores)
    made = short_weights(scores, counts, lanes) if lanes else weights(scores, counts)
    return (made.store(read.declared) if stored else made), total(made)


def once(read: Read, scores: Span) -> Span:
    """The pattern in float32."""
    return _float32(scores, seen(read, scores), read)
