"""A table read and written by rows is the table as a whole, in every layout and tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt_verify.laws.subject import NotExamined
from gpt_verify.laws.table_rows import TableRows, row_tiles
from gpt_verify.laws.worst import Worst
from gpt_verify.ports.torch.parameter import parameter_of

SHAPE = (7, 4)
#: Shape of a table in a port, and whether it is [D, V].
LAYOUTS = [((7, 4), False), ((4, 7), True), ((1, 7, 4), False), ((4, 7, 1), True)]


def table(
    shape: tuple[int, ...], transposed: bool, direct: bool, shape_VD: tuple[int, int] = SHAPE
) -> tuple[TableRows, torch.Tensor]:
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    parameter = parameter_of("wte", values)
    if not direct:
        parameter = replace(parameter, read_at=None, write_at=None)
    return TableRows(parameter, shape_VD, transposed), values


def to_checkpoint_layout(values: torch.Tensor, transposed: bool) -> np.ndarray:
    matrix = values.numpy().reshape(SHAPE[::-1] if transposed else SHAPE)
    return matrix.T if transposed else matrix


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("shape", "transposed"), LAYOUTS)
class TestEveryLayout:
    def test_read(self, shape: tuple[int, ...], transposed: bool, direct: bool) -> None:
        rows, values = table(shape, transposed, direct)
        expected = to_checkpoint_layout(values, transposed)
        for at in (np.array([5, 0, 2]), slice(2, 6), np.zeros(0, np.int64)):
            assert np.array_equal(rows.read(at), expected[at])
        for size in (1, 8 * 4 * 2, 8 * 4 * 3, 10**6):
            tiles = list(rows.tiles(size))
            assert np.array_equal(np.concatenate([t for _, t in tiles]), expected)
            assert all(np.array_equal(expected[at], t) for at, t in tiles)

    def test_write(self, shape: tuple[int, ...], transposed: bool, direct: bool) -> None:
        rows, values = table(shape, transposed, direct)
        expected = to_checkpoint_layout(values, transposed).copy()
        at = np.array([6, 1])
        for value in (
            np.zeros((), np.float32),
            np.arange(4, dtype=np.float32),
            -np.arange(8, dtype=np.float32).reshape(2, 4),
        ):
            rows.write(at, value)
            expected[at] = value
            assert np.array_equal(to_checkpoint_layout(values, transposed), expected)
        rows.write(np.zeros(0, np.int64), np.ones(4, np.float32))
        assert np.array_equal(to_checkpoint_layout(values, transposed), expected)

    def test_every_bit_is_in_the_digest(
        self, shape: tuple[int, ...], transposed: bool, direct: bool
    ) -> None:
        rows, values = table(shape, transposed, direct)
        seen = {rows.digest()}
        for place in range(values.numel()):
            values.view(-1).view(torch.int32)[place] ^= 1
            seen.add(rows.digest())
        values.view(-1)[0] = 0.0
        seen.add(rows.digest())
        values.view(-1)[0] = -0.0
        seen.add(rows.digest())
        assert len(seen) == values.numel() + 3


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (6,), (1, 1, 6)])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_only_row(shape: tuple[int, ...], transposed: bool) -> None:
    rows, values = table(shape, transposed, True, (1, 6))
    none = np.zeros(0, np.int64)
    assert rows.read(none).shape == (0, 6)
    rows.write(none, np.ones(6, np.float32))
    assert np.array_equal(rows.read(slice(0, 1)), np.arange(6.0)[None])
    rows.write(np.zeros(1, np.int64), np.ones(6, np.float32))
    assert bool((values == 1).all())


def test_another_shape() -> None:
    with pytest.raises(NotExamined, match=r"a table of shape \[8, 4\], not \[7, 4\]"):
        table((8, 4), False, True)


def test_a_tile_has_a_row_at_least() -> None:
    assert [(t.start, t.stop) for t in row_tiles((3, 1000), 1)] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("tile", [1, 5, 12, 1000])
class TestWorst:
    def test_the_first_of_the_greatest(self, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpt_verify.laws.worst.TILE", tile)
        expected = np.zeros((6, 4), np.float32)
        got = expected.copy()
        got[1, 2], got[3, 1], got[5, 3], got[0, 0] = 0.5, -2.0, 2.0, -0.0
        for a, b in ((got, expected), (np.asfortranarray(got), expected)):
            worst = Worst()
            worst.see(a, b)
            assert str(worst) == "[3, 1] = -2, should be 0"
            assert worst.count == "4 of 24 differ"

    def test_nan_is_the_greatest(self, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpt_verify.laws.worst.TILE", tile)
        worst = Worst()
        worst.see(np.array([1e30, 0.0, np.nan]), np.zeros(3), 10)
        assert str(worst) == "[12] = nan, should be 0"

    def test_one_number(self, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpt_verify.laws.worst.TILE", tile)
        worst = Worst()
        worst.see(np.array(1.0), np.array(2.0))
        assert (str(worst), worst.count) == ("[] = 1, should be 2", "1 of 1 differ")

    def test_equal(self, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpt_verify.laws.worst.TILE", tile)
        worst = Worst()
        worst.see(np.ones((3, 2)), np.ones((3, 2)))
        assert (worst.unequal, worst.size) == (0, 6)
