"""A port's table of embeddings row by row, however it lies: it may be too large to hold twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from gpt_verify.laws.subject import NotExamined
from gpt_verify.numerics.weights import Rows as Rows
from gpt_verify.port import Floats, Index, Parameter

#: Bytes of one tile in float64.
TILE = 16 << 20


def table_rows(value: Floats, shape_VD: tuple[int, int], transposed: bool) -> Floats:
    """A view [V, D] of a table in a port's own layout: transposed, or with axes of length 1.

    Raises:
        NotExamined: it has another shape, as the view of a part has.
    """
    wanted = _wanted(value.shape, shape_VD, transposed)
    view = value.reshape(wanted)
    return view.T if transposed else view


def row_tiles(shape_VD: tuple[int, int], tile: int | None = None) -> Iterator[slice]:
    """The rows of a table in tiles of so many bytes in float64, at least a row each."""
    n_rows, width = shape_VD
    step = max(1, (tile or TILE) // (8 * width))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


class TableRows:
    """Rows of a table, read and written without the others where the port can.

    Args:
        parameter: the table.
        shape_VD: as the checkpoint has it.
        transposed: the port keeps [D, V].

    Raises:
        NotExamined: it has another shape, as the view of a part has.
    """

    def __init__(self, parameter: Parameter, shape_VD: tuple[int, int], transposed: bool) -> None:
        _wanted(parameter.shape, shape_VD, transposed)
        self._parameter, self._shape_VD, self._transposed = parameter, shape_VD, transposed
        places = [axis for axis, n in enumerate(parameter.shape) if n == shape_VD[0]]
        #: Of the rows, in the port's shape; None where the only row has no axis.
        self._axis = places[-1 if transposed else 0] if places else None

    def read(self, rows: Rows) -> Floats:
        """[R, D], a copy or not."""
        read_at, index = self._parameter.read_at, self._index(rows)
        if read_at is None or index is None:
            return self._whole()[rows]
        value, width = read_at(index), self._shape_VD[1]
        return value.reshape(width, -1).T if self._transposed else value.reshape(-1, width)

    def write(self, rows: Rows, value: Floats) -> None:
        """One number, one row, or as many rows: [], [D] or [R, D]."""
        write_at, index = self._parameter.write_at, self._index(rows)
        if write_at is None or index is None:
            assert self._parameter.write is not None, "the caller has asked"
            whole = np.array(self._parameter.read(), order="C")
            table_rows(whole, self._shape_VD, self._transposed)[rows] = value
            self._parameter.write(whole)
            return
        if value.ndim:
            value_RD = np.atleast_2d(value)
            shape = [len(value_RD) if at == self._axis else n for at, n in self._axes()]
            value = (value_RD.T if self._transposed else value_RD).reshape(shape)
        write_at(index, value)

    def tiles(self, tile: int | None = None) -> Iterator[tuple[slice, Floats]]:
        """All rows, a tile after the other."""
        whole = self._whole() if self._parameter.read_at is None else None
        for rows in row_tiles(self._shape_VD, tile):
            yield rows, self.read(rows) if whole is None else whole[rows]

    def digest(self) -> bytes:
        """Of every bit."""
        made = hashlib.blake2b()
        for _, value in self.tiles():
            made.update(np.ascontiguousarray(value).data)
        return made.digest()

    def _whole(self) -> Floats:
        return table_rows(self._parameter.read(), self._shape_VD, self._transposed)

    def _index(self, rows: Rows) -> Index | None:
        whole: Rows = slice(None)
        if self._axis is None:
            return None
        return tuple(rows if at == self._axis else whole for at, _ in self._axes())

    def _axes(self) -> Iterator[tuple[int, int]]:
        return enumerate(self._parameter.shape)


def _wanted(shape: tuple[int, ...], shape_VD: tuple[int, int], transposed: bool) -> tuple[int, int]:
    wanted = shape_VD[::-1] if transposed else shape_VD
    if [n for n in shape if n != 1] != [n for n in wanted if n != 1]:
        raise NotExamined(f"a table of shape {list(shape)}, not {list(wanted)}")
    return wanted
