"""Scores and limits: the statistics are what they say, the limits mean what they claim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import summed

from gpt_verify.graph.cascade import CascadeScores
from gpt_verify.numerics.scores import FALSE_ALARM, SiteScores, Statistic, limit_max, limit_rms

rng = np.random.default_rng(0)


def near(expected: float) -> Any:
    """No test here sums more than a thousand squares."""
    return summed(expected, 1000)


def statistics(scores: SiteScores) -> dict[str, Statistic]:
    return {s.name: s for s in scores.statistics()}


class TestLimits:
    def test_monotone(self) -> None:
        sizes = [1, 2, 10, 1000, 10**6, 10**9]
        assert [limit_max(n) for n in sizes] == sorted(limit_max(n) for n in sizes)
        falling = [limit_rms(n) for n in sizes]
        assert falling == sorted(falling, reverse=True)
        rising = [limit_rms(100, groups) for groups in sizes]
        assert rising == sorted(rising)
        assert 1 < limit_rms(10**9) < 1.001

    @pytest.mark.parametrize("n", [1, 30, 10**6])
    def test_limit_max_is_the_union_bound(self, n: int) -> None:
        assert 2 * n * math.exp(-(limit_max(n) ** 2) / 2) == near(FALSE_ALARM)

    @pytest.mark.parametrize(("rows", "groups"), [(1, 1), (7, 1), (40, 5), (1000, 30)])
    def test_limit_rms_is_above_the_quantile_of_chi_squared(self, rows: int, groups: int) -> None:
        """Chernoff's bound on the χ² tail, which is sharper than the one in use, is far smaller."""
        ratio = limit_rms(rows, groups) ** 2
        log_tail = -0.5 * rows * (ratio - 1 - math.log(ratio))
        assert groups * math.exp(log_tail) <= FALSE_ALARM
        # And the limit is not so wide that it says nothing.
        assert limit_rms(rows, groups) < 1 + 8 / math.sqrt(rows) + 20 / rows

    def test_gaussian_errors_stay_below(self) -> None:
        """A correct port's errors, as the model has them: no alarm in many runs."""
        for _ in range(300):
            shape = (int(rng.integers(1, 30)), int(rng.integers(1, 50)))
            scores = SiteScores()
            budget = np.exp(rng.standard_normal(shape))
            scores.add(budget * rng.standard_normal(shape), np.zeros(shape), budget)
            assert all(s.ratio <= 1 for s in scores.statistics())

    def test_rows_with_one_common_error_stay_below(self) -> None:
        """The worst dependence that is allowed for: every element of a row is off alike."""
        for _ in range(300):
            rows, width = int(rng.integers(1, 30)), int(rng.integers(2, 50))
            error = np.repeat(rng.standard_normal((rows, 1)), width, axis=1)
            scores = SiteScores()
            scores.add(error, np.zeros_like(error), np.ones_like(error))
            assert all(s.ratio <= 1 for s in scores.statistics())

    def test_a_few_budgets_everywhere_are_caught(self) -> None:
        for rows in (1, 5, 100):
            shape = (rows, 20)
            scores = SiteScores()
            scores.add(10 * rng.standard_normal(shape), np.zeros(shape), np.ones(shape))
            assert max(s.ratio for s in scores.statistics()) > 1
        assert limit_rms(1000) < 1.3  # what 1000 tokens can tell

    @pytest.mark.parametrize("where", ["position", "channel"])
    def test_an_error_in_one_place_is_caught_there(self, where: str) -> None:
        at = (33, slice(None)) if where == "position" else (slice(None), 33)
        scores = SiteScores()
        for index in range(50):
            error = 0.5 * rng.standard_normal((60, 40))
            error[at] *= 6.0
            error = np.clip(error, -5, 5)
            scores.add(error, np.zeros_like(error), np.ones_like(error), (index, 0))
        found = statistics(scores)
        assert found["max"].ratio < 1
        assert found["rms"].ratio < 1
        assert found[where].ratio > 1
        assert found[where].where == 33


class TestSiteScores:
    """Sums over inputs and tiles equal a direct computation on everything at once."""

    def test_pooled(self) -> None:
        blocks = [rng.standard_normal((t, 12)) for t in (3, 7, 5)]
        scores = SiteScores(heads=3)
        for i, z in enumerate(blocks):
            scores.add(z * 0.5 + 1, np.ones_like(z), np.full_like(z, 0.5), (i, 0))
        everything = np.concatenate(blocks)
        found = statistics(scores)
        assert scores.elements == everything.size
        assert found["rms"].score == near(np.sqrt(np.mean(everything**2)))
        assert found["rms"].limit == limit_rms(15)
        assert found["max"].score == near(np.abs(everything).max())
        assert found["max"].limit == limit_max(everything.size)

        channels = np.sqrt(np.mean(everything**2, axis=0))
        assert found["channel"].where == int(np.argmax(channels))
        assert found["channel"].score == near(channels.max())
        assert found["channel"].limit == limit_rms(15, 12)
        heads = np.sqrt(np.mean(everything.reshape(15, 3, 4) ** 2, axis=(0, 2)))
        assert found["head"].where == int(np.argmax(heads))
        assert found["head"].score == near(heads.max())

        squares, rows = np.zeros(7), np.zeros(7)
        for z in blocks:
            squares[: len(z)] += np.mean(z**2, axis=1)
            rows[: len(z)] += 1
        ratios = np.sqrt(squares / rows) / [limit_rms(int(n), 7) for n in rows]
        assert found["position"].where == int(np.argmax(ratios))
        assert found["position"].ratio == near(ratios.max())

    @given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 30))
    @settings(max_examples=60, deadline=None)
    def test_tiles_are_the_whole(self, rows: int, width: int, step: int) -> None:
        local = np.random.default_rng([rows, width, step])
        whole, tiled = SiteScores(), SiteScores()
        for index in range(2):
            z = local.standard_normal((rows, width))
            one = np.ones_like(z)
            whole.add(z, np.zeros_like(z), one, (index, 0))
            for first in range(0, width, step):
                part = slice(first, first + step)
                zero = np.zeros_like(z[:, part])
                tiled.add(z[:, part], zero, one[:, part], (index, 0), first, width)
        assert tiled.worst == whole.worst
        assert tiled.elements == whole.elements
        for a, b in zip(tiled.statistics(), whole.statistics(), strict=True):
            assert (a.name, a.limit, a.where) == (b.name, b.limit, b.where)
            assert a.score == near(b.score)

    def test_above_the_diagonal_does_not_count(self) -> None:
        z = rng.standard_normal((4, 6, 6))
        scores = SiteScores()
        got = np.where(np.tri(6, dtype=bool), z, np.nan)
        scores.add(got, np.zeros_like(z), np.ones_like(z))
        below = z[:, np.tri(6, dtype=bool)]
        found = statistics(scores)
        assert scores.elements == below.size == 84
        assert found["rms"].score == near(np.sqrt(np.mean(below**2)))
        heads = np.sqrt(np.mean(below**2, axis=1))
        assert found["head"].where == int(np.argmax(heads))
        assert found["head"].score == near(heads.max())

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("expected", [0.0, np.nan, np.inf])
    def test_what_is_not_a_number_is_infinitely_wrong(self, value: float, expected: float) -> None:
        got, right = np.zeros((3, 4)), np.zeros((3, 4))
        got[1, 2], right[1, 2] = value, expected
        scores = SiteScores()
        scores.add(got, right, np.ones((3, 4)), (5, 0))
        assert scores.worst is not None
        assert scores.worst.index == (5, 0, 1, 2)
        found = statistics(scores)
        for name in ("rms", "max", "position", "channel"):
            assert found[name].score == math.inf
        assert found["position"].where == 1
        assert found["channel"].where == 2

    def test_a_later_nan_is_not_hidden(self) -> None:
        scores = SiteScores()
        scores.add(np.ones((2, 2)), np.zeros((2, 2)), np.ones((2, 2)))
        scores.add(np.full((2, 2), np.nan), np.zeros((2, 2)), np.ones((2, 2)))
        assert statistics(scores)["max"].ratio == math.inf

    def test_nothing_is_no_statistic(self) -> None:
        assert SiteScores().statistics() == []

    def test_the_worst_element_in_full(self) -> None:
        got, budget = np.zeros((3, 4)), np.ones((3, 4))
        got[2, 1], budget[2, 1] = 5.0, 0.25
        scores = SiteScores()
        scores.add(got, np.zeros((3, 4)), budget, (1, 0), first_channel=8, channels=12)
        assert scores.worst is not None
        assert scores.worst.index == (1, 0, 2, 9)
        assert (scores.worst.got, scores.worst.budget, scores.worst.score) == (5.0, 0.25, 20.0)


class TestCascadeScores:
    def test_floors_channel_by_channel(self) -> None:
        error, noise = rng.standard_normal((2, 9, 4))
        scores = CascadeScores()
        assert not scores.seen
        scores.add(error[:5], noise[None, :5], None)
        scores.add(error[5:], noise[None, 5:], None)
        ratios = (error**2).sum(axis=0) / (noise**2).sum(axis=0)
        assert scores.seen
        assert scores.floors() == near(np.sqrt(ratios.mean()))

    def test_draws_are_averaged(self) -> None:
        error, noise = np.full((5, 4), 3.0), rng.standard_normal((6, 5, 4))
        scores = CascadeScores()
        scores.add(error, noise, None)
        square = (noise**2).mean(axis=0).sum(axis=0)
        assert scores.floors() == near(np.sqrt((45.0 / square).mean()))

    def test_the_budget_is_part_of_the_floor(self) -> None:
        scores = CascadeScores()
        scores.add(np.full((3, 2), 4.0), np.zeros((1, 3, 2)), np.full((3, 2), 2.0))
        assert scores.floors() == 2.0

    def test_tiles_are_the_whole(self) -> None:
        error, noise = rng.standard_normal((2, 3, 7))
        whole, tiled = CascadeScores(), CascadeScores()
        whole.add(error, noise[None], None)
        for first in (0, 3, 6):
            part = slice(first, first + 3)
            tiled.add(error[:, part], noise[None, :, part], None, first, 7)
        assert tiled.floors() == near(whole.floors())

    def test_by_head_below_the_diagonal(self) -> None:
        error = np.where(np.tri(4, dtype=bool), 2.0, np.nan) * np.ones((3, 1, 1))
        scores = CascadeScores()
        scores.add(error, np.ones((1, 3, 4, 4)), None)
        assert scores.floors() == 2.0

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_a_number_is_infinitely_far(self, value: float) -> None:
        scores = CascadeScores()
        scores.add(np.array([[0.0, value]]), np.ones((1, 1, 2)), None)
        assert scores.floors() == math.inf

    def test_an_error_without_noise_is_infinitely_far(self) -> None:
        scores = CascadeScores()
        scores.add(np.array([[0.0, 1e-9]]), np.array([[[1.0, 0.0]]]), None)
        assert scores.floors() == math.inf
        exact = CascadeScores()
        exact.add(np.zeros((1, 2)), np.zeros((1, 1, 2)), None)
        assert exact.floors() == 0.0
