"""Rotary positions: what the tables are kept in, and where their products are rounded."""

from __future__ import annotations

from functools import partial

import numpy as np

from gpt_verify.graph.operations.rope import rope_of
from gpt_verify.numerics.budgets import FUNCTION_ULP
from gpt_verify.recipes.arithmetic import Array, Span, U, constant, exact
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference.ops import heads_of, side_by_side
from gpt_verify.reference.positions import frequencies, pairs

#: As in the budget of the operation: roundings of a frequency once it is a power of θ.
_OF_A_FREQUENCY = 5


def _frequencies(read: Read) -> Span:
    """Angle of each pair from one position to the next, made in float32 in some way."""
    rope = rope_of(read.config, read.site)
    exponent_R = np.abs(np.log(rope.theta)) * np.arange(0, rope.size, 2) / rope.size
    relative_R = exponent_R + FUNCTION_ULP + _OF_A_FREQUENCY
    f_R = frequencies(rope)
    return exact(f_R).within(U * relative_R * f_R)


def _tables(read: Read, frequency_stored: bool, angle_stored: bool) -> tuple[Span, Span]:
    """Cosine and sine, [T, R/2], whose angles err by as many units as they are long."""
    rope, p = rope_of(read.config, read.site), read.declared
    f_R = _frequencies(read)
    f_R = f_R.store(p) if frequency_stored else f_R
    places = np.arange(len(read.tokens_T), dtype=np.float64)[:, None]
    angle_TR = exact(places) * f_R.each(lambda x: x[None])
    angle_TR = angle_TR.store(p) if angle_stored else angle_TR.loose(1)
    error = np.maximum(angle_TR.high - angle_TR.mid, angle_TR.mid - angle_TR.low)
    error = error + FUNCTION_ULP * U
    attention = constant(1.0 if rope.scaling is None else rope.scaling.attention)
    cos, sin = (
        Span(made, made, made).within(error) * attention
        for made in (np.cos(angle_TR.mid), np.sin(angle_TR.mid))
    )
    return cos, sin


def _turned(
    read: Read,
    stored: bool,
    stepwise: bool,
    frequency_stored: bool = False,
    angle_stored: bool = False,
) -> Span:
    """(a cos - b sin, b cos + a sin)."""
    p, rope = read.declared, rope_of(read.config, read.site)
    cos, sin = _tables(read, frequency_stored, angle_stored)
    if stored:
        cos, sin = cos.store(p), sin.store(p)
    x = read.input().each(lambda x: heads_of(x, read.site.heads))
    one, other = (x.each(partial(_part, at=at)) for at in pairs(rope))

    def kept(made: Span) -> Span:
        return made.store(p) if stepwise else made

    a = kept(one * cos) - kept(other * sin)
    b = kept(other * cos) + kept(one * sin)

    def put(whole: Array, first: Array, second: Array) -> Array:
        made = whole.copy()
        made[..., pairs(rope)[0]], made[..., pairs(rope)[1]] = first, second
        return side_by_side(made)

    return Span(put(x.low, a.low, b.low), put(x.mid, a.mid, b.mid), put(x.high, a.high, b.high))


def _part(x: Array, at: slice) -> Array:
    found: Array = x[..., at]
    return found


ROPE = (
    Recipe("float32", "in float32", partial(_turned, stored=False, stepwise=False)),
    Recipe(
        "tables-stored",
        "with tables in {half}, every step stored",
        partial(_turned, stored=True, stepwise=True),
    ),
    Recipe(
        "tables-stored-once",
        "with tables in {half}, rounded once",
        partial(_turned, stored=True, stepwise=False),
    ),
    Recipe(
        "steps",
        "with tables in float32, every step stored in {half}",
        partial(_turned, stored=False, stepwise=True),
    ),
    *(
        Recipe(
            f"{name}{more}",
            f"{words}{said}",
            partial(
                _turned,
                stored=True,
                stepwise=step,
                frequency_stored=of_frequency,
                angle_stored=of_angle,
            ),
        )
        for name, words, of_frequency, of_angle in (
            ("angles-stored", "with angles in {half}", False, True),
            ("frequencies-stored", "with frequencies in {half}", True, False),
            ("frequencies-angles-stored", "with frequencies and angles in {half}", True, True),
        )
        for more, said, step in (
            ("", ", every step stored", True),
            ("-once", ", rounded once", False),
        )
    ),
)
