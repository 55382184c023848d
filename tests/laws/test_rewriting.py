"""What rewrites the weights: grids of powers of two, and matrices a few rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpt_verify.laws.symmetry import transforms
from gpt_verify.laws.symmetry.transforms import heads, neurons, on_grid, rotate, scale, together
from gpt_verify.numerics.precision import PRECISIONS, Precision
from gpt_verify.reference import Config

CONFIG = Config(n_vocab=11, n_ctx=5, n_embd=24, n_head=3, n_layer=1)
DTYPES = ("float64", "float32", "bfloat16", "float16")


def plainly(x: Any, bound: Any, precision: Precision) -> Any:
    """The same grid by logarithms, which are exact enough for numbers of few bits."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        power = np.ceil(np.log2(bound))
        spacing = np.exp2(np.maximum(power, -1000)) * precision.u
        spacing = np.maximum(spacing, 4 * precision.tiny)
        return np.round(x / spacing) * spacing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 1e-300, 1e300, 1e-40, 0.0, 1e308])
def test_the_grid_is_that_of_the_next_power_of_two(dtype: str, size: float) -> None:
    precision = PRECISIONS[dtype]
    drawn = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    with np.errstate(over="ignore"):
        x = drawn.astype(np.float64) * size
        for bound in (np.abs(x), 4 * np.abs(x)):
            right = plainly(x, bound, precision)
            np.testing.assert_array_equal(on_grid(x, bound, precision), right, strict=True)
    powers = 2.0 ** np.arange(-1074.0, 1024.0)
    for bound in (powers, powers * (1 + 2.0**-23)):
        right = plainly(powers, bound, precision)
        np.testing.assert_array_equal(on_grid(powers, bound, precision), right, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_just_above_a_power_has_the_grid_above_it(dtype: str) -> None:
    """A logarithm rounds it down to the power itself."""
    precision, power = PRECISIONS[dtype], 2.0**10
    bound = np.nextafter(np.full(2, power), np.inf)
    spacing = 2 * power * precision.u
    x = np.array([power + spacing / 2, power - spacing / 2])
    found = on_grid(x, bound, precision)
    assert (np.round(found / spacing) * spacing == found).all()
    assert not np.array_equal(found, plainly(x, bound, precision))


@pytest.mark.parametrize("kind", ["attn/c_attn/w", "attn/c_proj/w", "mlp/c_fc/w", "mlp/c_proj/w"])
def test_a_few_rows_at_a_time_are_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, precision = np.random.default_rng(3), PRECISIONS["float32"]
    every = (scale(CONFIG, precision, rng), rotate(CONFIG, precision, rng))
    step = together((*every, heads(CONFIG, rng), neurons(CONFIG, rng))).steps[kind]
    shape = {"attn/c_attn/w": (24, 72), "attn/c_proj/w": (24, 24), "mlp/c_fc/w": (24, 96)}
    value = rng.standard_normal(shape.get(kind, (96, 24))).astype(np.float32)
    whole = step.based(value), step.after(step.based(value))
    for tile in (1, 100, 500):
        monkeypatch.setattr(transforms, "TILE", tile)
        tiled = step.based(value), step.after(step.based(value))
        for one, other in zip(tiled, whole, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
