"""One factor in all directions: found where there is one, and nothing is divided by zero."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpt_verify.graph.derivatives import Derivative
from gpt_verify.graph.directions import Direction
from gpt_verify.laws.tying.hypotheses import TiedEnd, of_head

#: What a derivative, its rounding or its floor may be, of weights that are all alike in particular.
NUMBERS = st.sampled_from([0.0, 5e-324, 1e-300, 1e-12, 1.0, 3.0, 1e300, math.inf, math.nan])
SIGNED = st.builds(lambda x, sign: sign * x, NUMBERS, st.sampled_from([-1.0, 1.0]))
ROWS, COLUMNS = 4, 3


def directions(seed: int, count: int) -> list[Direction]:
    rng = np.random.default_rng(seed)
    factors = [(rng.uniform(0.5, 1, ROWS), rng.uniform(0.5, 1, COLUMNS)) for _ in range(count)]
    return [Direction("wte", ("logits",), left, right) for left, right in factors]


@given(st.lists(st.tuples(SIGNED, NUMBERS, NUMBERS), min_size=1, max_size=3), st.integers(0, 9))
def test_whatever_is_known_is_looked_at(known: list[tuple[float, float, float]], seed: int) -> None:
    expected = [
        Derivative(direction, *numbers)
        for direction, numbers in zip(directions(seed, len(known)), known, strict=True)
    ]
    gradient_VD = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS))
    with np.errstate(divide="raise"):
        for end in (TiedEnd(gradient_VD, expected), TiedEnd(0 * gradient_VD, expected)):
            assert end.scaled in (False, True)
            assert not (end.blocked and end.scaled)


@given(
    st.floats(1e-3, 1e3).filter(lambda factor: abs(factor - 1) > 1e-3),
    st.sampled_from([1e-12, 1e-9]),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_factor_is_found(factor: float, noise: float, scaled: bool, seed: int) -> None:
    """And is none where one direction has another."""
    correct_VD = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS))
    along = [(d, d.along(correct_VD)) for d in directions(seed, 3)]
    expected = [Derivative(d, value, noise * abs(value), 0.0) for d, value in along]
    wrong_VD = factor * correct_VD
    if not scaled:
        wrong_VD[0, 0] += 1.0
    end = TiedEnd(wrong_VD, expected)
    assert end.scaled == scaled
    named = of_head(TiedEnd(correct_VD, expected), end)
    assert named == ("tying-head-scaled" if scaled else None)
