"""The lens on the processor: NumPy, one thread for each block of positions.

A block's logits are one product; its rows then pass through the cache a few at a time. Each thread
does both for blocks of its own, with a BLAS of one thread: so the cores never wait for each other,
and what one does between two calls of NumPy the other does not notice.

The product may be torch's instead of NumPy's, whose BLAS is the faster one on some processors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from verify.lens.rows import Measured, Rows

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
#: Of rows [R, D] with wte, into an array [R, V].
Product = Callable[[Floats, Floats], object]

#: How long the sums are that are added up in the engine's own dtype.
SEGMENT = 768
#: Logits of the states that are worked on at a time; three such buffers and five single rows are
#: to fit the second-level cache.
GROUP_BYTES = 512 * 1024
#: Logits of a block: enough rows for the product to be efficient.
BLOCK_BYTES = 64 * 1024 * 1024


class NumpyArrays:
    """``Arrays`` in NumPy. A row is a table of ``segments`` × ``length``, padded at its end.

    The top k lie in the k *columns* of that table with the largest maxima, and the maxima of all
    columns are one vectorised maximum over its few rows.
    """

    def __init__(self, n_vocab: int, dtype: DTypeLike) -> None:
        self.xp: Any = np
        self.n_vocab, self.dtype = n_vocab, np.dtype(dtype)
        self.lowest = float(np.finfo(self.dtype).min)
        self.segments = max(1, round(n_vocab / SEGMENT))
        # In steps of 64 bytes, so that vectors do not straddle lines of the cache.
        step = 16 if self.segments > 1 else 1
        self.length = step * math.ceil(n_vocab / (self.segments * step))
        self.width = self.segments * self.length
        self._ones = np.ones(self.length, self.dtype)

    def empty(self, *shape: int) -> Floats:
        return np.empty(shape, self.dtype)

    def zeros(self, *shape: int) -> NDArray[np.float64]:
        return np.zeros(shape)

    def narrow(self, a: Floats) -> Floats:
        return a.astype(self.dtype)

    def wide(self, a: Floats) -> Floats:
        return a.astype(np.float64)

    def host(self, a: NDArray[Any]) -> NDArray[Any]:
        return a

    def dot(self, a_PnV: Floats, b_PnV: Floats) -> Floats:
        return _sum(np.vecdot(self._table(a_PnV), self._table(b_PnV)))

    def total(self, a_PnV: Floats) -> Floats:
        return _sum(self._table(a_PnV) @ self._ones)

    def argmax(self, y_PV: Floats) -> Ints:
        ids_P: Ints = np.argmax(y_PV, axis=-1)
        return ids_P

    def take(self, y_PnV: Floats, ids_P: Ints) -> Floats:
        return np.take_along_axis(y_PnV, ids_P[:, None, None], axis=-1)

    def above(self, y_PnV: Floats, own_Pn1: Floats) -> Ints:
        above_PnV = y_PnV[..., : self.n_vocab] > own_Pn1
        # Row by row: with an axis, count_nonzero adds up integers instead of counting bytes.
        return np.array([[np.count_nonzero(row) for row in rows] for rows in above_PnV])

    def largest(self, x_PnV: Floats) -> tuple[Floats, Floats]:
        columns_PnL = np.max(self._table(x_PnV), axis=-2)
        largest_Pn1 = np.max(columns_PnL, axis=-1, keepdims=True)
        return largest_Pn1, columns_PnL - largest_Pn1

    def top(self, y_PNV: Floats, known: Sequence[Floats], k: int) -> tuple[Ints, Floats]:
        shape = (*y_PNV.shape[:2], k)
        y_RV = y_PNV.reshape(-1, self.width)
        columns_RL = np.concatenate(known, axis=1).reshape(len(y_RV), -1)
        ids_Rk, top_Rk = self._top_of_columns(y_RV, columns_RL, k)
        return ids_Rk.reshape(shape), top_Rk.reshape(shape).astype(np.float64)

    def _top_of_columns(self, y_RV: Floats, columns_RL: Floats, k: int) -> tuple[Ints, Floats]:
        taken = min(k, self.length)
        best_Rk = np.argpartition(columns_RL, self.length - taken, axis=-1)[:, -taken:]
        rows_S = np.arange(self.segments) * self.length
        ids = np.sort((best_Rk[:, :, None] + rows_S).reshape(len(y_RV), -1), axis=-1)
        ids_Rk, top_Rk = _first(ids, np.take_along_axis(y_RV, ids, axis=-1), k)
        # A column that was not taken may hold an equal of the last one, with a smaller id.
        least_R1 = top_Rk[:, -1:]
        equal_R = np.sum(columns_RL >= least_R1, axis=-1)
        equal_R -= np.sum(np.take_along_axis(columns_RL, best_Rk, axis=-1) >= least_R1, axis=-1)
        for row in np.flatnonzero(equal_R):
            all_ids = np.flatnonzero(y_RV[row] >= least_R1[row])[None]
            ids_Rk[row], top_Rk[row] = _first(all_ids, y_RV[row, all_ids], k)
        return ids_Rk, top_Rk

    def _table(self, a_PnV: Floats) -> Floats:
        return a_PnV.reshape(*a_PnV.shape[:-1], self.segments, self.length)


def _sum(parts_PnS: Floats) -> Floats:
    total_Pn: Floats = np.sum(parts_PnS, axis=-1, dtype=np.float64)
    return total_Pn


def _first(ids: Ints, y: Floats, k: int) -> tuple[Ints, Floats]:
    """The k largest of each row, equal ones in the order in which they come."""
    order = np.argsort(-y, axis=-1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=-1), np.take_along_axis(y, order, axis=-1)


class NumpyWorker:
    """Measures blocks of up to ``rows`` rows of logits, one position at a time."""

    def __init__(self, wte_VD: Floats, rows: int, k: int, product: Product) -> None:
        self._product = product
        self._arrays = NumpyArrays(len(wte_VD), wte_VD.dtype)
        self._x_RV = self._arrays.empty(rows, self._arrays.width)
        group = max(1, GROUP_BYTES // (self._arrays.width * wte_VD.itemsize))
        self._rows = Rows(self._arrays, group, k)

    def measure(self, h_PND: Floats, tokens_P: Ints, next_P: Ints) -> Measured:
        """Statistics [P, N] of decoded states."""
        positions, states, d = h_PND.shape
        x_RV = self._x_RV[: positions * states]
        x_RV[:, self._arrays.n_vocab :] = -np.inf
        self._product(h_PND.reshape(-1, d), x_RV[:, : self._arrays.n_vocab])
        x_PNV = x_RV.reshape(positions, states, -1)
        with np.errstate(all="ignore"):  # what is not finite is reported as undefined
            measured = [
                self._rows.measure(x_PNV[at], tokens_P[at], next_P[at])
                for at in (slice(p, p + 1) for p in range(positions))
            ]
        return {name: np.concatenate([m[name] for m in measured]) for name in measured[0]}


class NumpyEngine:
    """Threads of NumPy; as many as its BLAS may use where the engine is made.

    Args:
        torch_product: have the logits computed by torch.
    """

    def __init__(self, torch_product: bool = False) -> None:
        self._torch_product = torch_product
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        self.workers = max(blas, default=1)
        self.block_bytes = BLOCK_BYTES

    def rows(self, n_vocab: int, dtype: DTypeLike) -> int:
        """How many rows of logits a block has."""
        width = NumpyArrays(n_vocab, dtype).width
        return max(1, self.block_bytes // (width * np.dtype(dtype).itemsize))

    def worker(self, wte_VD: Floats, rows: int, k: int) -> NumpyWorker:
        product = _torch_product(wte_VD) if self._torch_product else _numpy_product(wte_VD)
        return NumpyWorker(wte_VD, rows, k, product)

    @contextmanager
    def running(self) -> Iterator[None]:
        """One thread of BLAS for each of ours."""
        with threadpool_limits(limits=1, user_api="blas"):
            if not self._torch_product:
                yield
                return
            import torch

            before = torch.get_num_threads()
            try:
                yield
            finally:
                torch.set_num_threads(before)

    def enter_thread(self) -> None:
        """Called in each thread before it works."""
        if self._torch_product:
            import torch

            torch.set_num_threads(1)  # which also is for this thread alone, so far as BLAS goes


def _numpy_product(wte_VD: Floats) -> Product:
    return lambda h_RD, out_RV: np.matmul(h_RD, wte_VD.T, out=out_RV)


def _torch_product(wte_VD: Floats) -> Product:
    import torch

    with warnings.catch_warnings():
        # A mapped file is read-only, which torch cannot express; nothing is written to it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        wte = torch.from_numpy(wte_VD).T

    def product(h_RD: Floats, out_RV: Floats) -> object:
        return torch.mm(torch.from_numpy(h_RD), wte, out=torch.from_numpy(out_RV))

    return product
