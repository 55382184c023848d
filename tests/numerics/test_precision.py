"""Rounding to the narrow formats, bit for bit as torch rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, PRECISIONS, Precision

NARROW = [BFLOAT16, FLOAT16]
TORCH = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def by_torch(p: Precision, x: np.ndarray) -> np.ndarray:
    cast: np.ndarray = torch.from_numpy(x).to(TORCH[p.name]).to(torch.float32).numpy()
    return cast


def assert_same(p: Precision, x: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        got = p.round(x)
    expected = by_torch(p, x)
    assert got.dtype == np.float32
    assert got.shape == x.shape
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[~nan].view(np.int32), expected[~nan].view(np.int32))


@pytest.mark.parametrize("p", NARROW, ids=lambda p: p.name)
class TestRound:
    def test_random_bit_patterns(self, p: Precision) -> None:
        """Every kind of float32: normal, subnormal, infinite, NaN."""
        bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
        assert_same(p, bits.view(np.float32))

    def test_every_tie_and_its_neighbours(self, p: Precision) -> None:
        """Halfway between two numbers of the format, for each of its 2^16 numbers."""
        halves = np.arange(1 << 16, dtype=np.uint16)
        if p is FLOAT16:
            numbers = halves.view(np.float16).astype(np.float32)
        else:
            numbers = (halves.astype(np.uint32) << 16).view(np.float32)
        numbers = np.sort(numbers[np.isfinite(numbers)])
        ties = (numbers[:-1].astype(np.float64) + numbers[1:]) / 2
        ties32 = ties.astype(np.float32)
        for x in (numbers, ties32, np.nextafter(ties32, np.inf), np.nextafter(ties32, -np.inf)):
            assert_same(p, x.astype(np.float32))

    def test_beyond_the_largest(self, p: Precision) -> None:
        largest = np.float32(p.largest)
        assert p.round(largest.reshape(1)) == largest
        for x in (largest, np.nextafter(largest, np.float32(np.inf)), np.float32(3.4e38)):
            assert_same(p, np.array([x, -x], np.float32))

    def test_shape_is_kept(self, p: Precision) -> None:
        for shape in ((), (1,), (2, 3), (0, 4)):
            assert p.round(np.ones(shape, np.float32)).shape == shape
        x = np.arange(12, dtype=np.float32).reshape(3, 4).T / 7
        assert_same(p, x)

    @given(st.floats(width=32))
    @settings(max_examples=200, deadline=None)
    def test_twice_is_once(self, p: Precision, x: float) -> None:
        with np.errstate(over="ignore"):
            once = p.round(np.array([x], np.float32))
            assert p.round(once).tobytes() == once.tobytes()


@pytest.mark.parametrize("p", PRECISIONS.values(), ids=lambda p: p.name)
def test_constants_are_those_of_the_format(p: Precision) -> None:
    info = torch.finfo(TORCH[p.name])
    assert p.u == info.eps / 2
    assert p.largest == info.max
    # float64's is larger than its smallest number, so that its square is still a number.
    assert p.tiny**2 > 0
    if p is not FLOAT64:
        assert p.tiny == (2.0**-25 if p is FLOAT16 else info.tiny)
    assert p.u_sum <= p.u


@pytest.mark.parametrize("p", NARROW, ids=lambda p: p.name)
def test_u_bounds_the_relative_error_and_is_reached(p: Precision) -> None:
    x = np.random.default_rng(1).uniform(1, 2, 100_000).astype(np.float32)
    error = np.max(np.abs(p.round(x).astype(np.float64) - x) / x)
    assert 0.98 * p.u < error <= p.u


def test_wide_formats_are_left_alone() -> None:
    x = np.array([1 / 3, np.pi])
    assert FLOAT64.round(x).tobytes() == x.tobytes()
    assert FLOAT32.round(x).tobytes() == x.astype(np.float32).tobytes()
