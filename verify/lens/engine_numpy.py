"""The lens on the processor: NumPy, one thread for each block of positions.

A block's logits are one product; its rows then pass through the cache a few at a time. Each thread
does both for blocks of its own, with a BLAS of one thread: so the cores never wait for each other,
and what one does between two calls of NumPy the other does not notice.

The product may be torch's instead of NumPy's, whose BLAS is the faster one on some processors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Semaphore
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from gpt_verify.lens.rows import Measured, Rows

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
#: Of rows [R, D] with wte, into an array [R, V].
Product = Callable[[Floats, Floats], object]

#: How long the sums are that are added up in the engine's own dtype.
SEGMENT = 3072
#: How many logits stand for one, their maximum, while the largest are looked for.
COLUMN = 32
#: Logits of the states that are worked on at a time; three such groups and four single rows are
#: to fit the second-level cache.
GROUP_BYTES = 640 * 1024
#: Memory is mapped in pages of this size where that is asked for, as NumPy does from twice as much
#: on. Scattered over small pages, rows that should fit the cache displace each other.
LARGE_PAGE = 2 * 1024 * 1024
#: Logits of a block: enough rows for the product to be efficient.
BLOCK_BYTES = 64 * 1024 * 1024


class NumpyArrays:
    """``Arrays`` in NumPy. A row is padded at its end, so that it is a table in two ways.

    In ``segments`` rows, each of which is summed up in the engine's dtype. And in ``COLUMN`` rows:
    the top k lie in the k columns with the largest maxima, and the maxima of all columns are one
    vectorised maximum over the rows.
    """

    def __init__(self, n_vocab: int, dtype: DTypeLike) -> None:
        self.xp: Any = np
        self.n_vocab, self.dtype = n_vocab, np.dtype(dtype)
        self.lowest = float(np.finfo(self.dtype).min)
        self.segments = max(1, round(n_vocab / SEGMENT))
        self.depth = COLUMN if n_vocab >= 64 * COLUMN else 1
        # Whole lines of the cache, which vectors then do not straddle.
        step = math.lcm(16 * self.segments, self.depth)
        self.width = step * math.ceil(n_vocab / step)
        self._above = np.empty(0, np.bool_)
        self._ones = np.ones(self.width // self.segments, self.dtype)

    def empty(self, *shape: int) -> Floats:
        return np.empty(shape, self.dtype)

    def scratch(self, positions: int, rows: int) -> Floats:
        shape = (positions, rows, self.width)
        size = math.prod(shape) * self.dtype.itemsize
        block = np.empty(size + 2 * LARGE_PAGE, np.uint8)
        start = -block.ctypes.data % LARGE_PAGE
        return block[start : start + size].view(self.dtype).reshape(shape)

    def zeros(self, *shape: int) -> NDArray[np.float64]:
        return np.zeros(shape)

    def narrow(self, a: Floats) -> Floats:
        return a.astype(self.dtype)

    def wide(self, a: Floats) -> Floats:
        return a.astype(np.float64)

    def host(self, a: NDArray[Any]) -> NDArray[Any]:
        return a

    def room(self, sums: int, positions: int, states: int) -> Floats:
        return self.empty(sums, positions, states, self.segments)

    def dot(self, a_PnV: Floats, b_PnV: Floats, out_Pn: Floats) -> None:
        a, b = self._table(a_PnV, self.segments), self._table(b_PnV, self.segments)
        np.vecdot(a, b, out=out_Pn)

    def total(self, a_PnV: Floats, out_Pn: Floats) -> None:
        np.matmul(self._table(a_PnV, self.segments), self._ones, out=out_Pn)

    def summed(self, room: Floats) -> Floats:
        total: Floats = np.sum(room, axis=-1, dtype=np.float64)
        return total

    def argmax(self, y_PV: Floats) -> Ints:
        ids_P: Ints = np.argmax(y_PV, axis=-1)
        return ids_P

    def take(self, y_PnV: Floats, ids_Pi: Ints) -> Floats:
        own_Pni: Floats = y_PnV[np.arange(len(y_PnV))[:, None], :, ids_Pi].swapaxes(-1, -2)
        return own_Pni

    def above(self, y_PnV: Floats, own_Pn1: Floats, out_Pn: Floats) -> None:
        y_RV = y_PnV.reshape(-1, self.width)[:, : self.n_vocab]
        if self._above.size < y_RV.size:
            self._above = np.empty(y_RV.size, np.bool_)
        above_RV = self._above[: y_RV.size].reshape(y_RV.shape)
        np.greater(y_RV, own_Pn1.reshape(-1, 1), out=above_RV)
        # Row by row: with an axis, count_nonzero adds up integers instead of counting bytes.
        out_Pn[...] = np.reshape([np.count_nonzero(row_V) for row_V in above_RV], out_Pn.shape)

    def notes(self, positions: int, states: int) -> Floats:
        return self.empty(positions, states, self.width // self.depth)

    def largest(self, x_PnV: Floats, notes_Pn: Floats) -> Floats:
        np.max(self._table(x_PnV, self.depth), axis=-2, out=notes_Pn)
        largest_Pn1: Floats = np.max(notes_Pn, axis=-1, keepdims=True)
        notes_Pn -= largest_Pn1
        return largest_Pn1

    def top(self, y_PNV: Floats, notes_PN: Floats, k: int) -> tuple[Ints, Floats]:
        shape = (*y_PNV.shape[:2], k)
        y_RV = y_PNV.reshape(-1, self.width)
        columns_RL = notes_PN.reshape(len(y_RV), -1)
        length = columns_RL.shape[1]
        taken = min(k, length)
        best_Rk = np.argpartition(columns_RL, length - taken, axis=-1)[:, length - taken :]
        rows = length * np.arange(self.depth)
        ids = (best_Rk[:, None, :] + rows[:, None]).reshape(len(y_RV), -1)
        y = np.take_along_axis(y_RV, ids, axis=-1)
        least_R1 = np.partition(y, -k, axis=-1)[:, -k, None]

        # As a rule k logits reach the k-th largest, all of them in these columns: those are they.
        reach, columns_reach = y >= least_R1, np.sum(columns_RL >= least_R1, axis=-1)
        columns_reach -= np.sum(np.take_along_axis(columns_RL, best_Rk, -1) >= least_R1, axis=-1)
        plain_R = (np.sum(reach, axis=-1) == k) & (columns_reach == 0)
        ids_Rk: Ints = np.zeros((len(y), k), np.int64)
        top_Rk: Floats = np.zeros((len(y), k))
        ids_Rk[plain_R] = ids[plain_R][reach[plain_R]].reshape(-1, k)
        top_Rk[plain_R] = y[plain_R][reach[plain_R]].reshape(-1, k)
        # Otherwise there are equal ones, of which the smallest ids count.
        for row in np.flatnonzero(~plain_R & ~np.isnan(least_R1[:, 0])):
            equal = np.flatnonzero(y_RV[row, : self.n_vocab] >= least_R1[row])
            best = np.argsort(-y_RV[row, equal], kind="stable")[:k]
            ids_Rk[row], top_Rk[row] = equal[best], y_RV[row, equal[best]]
        order = np.lexsort((ids_Rk, -top_Rk))
        ids_Rk = np.take_along_axis(ids_Rk, order, axis=-1)
        top_Rk = np.take_along_axis(top_Rk, order, axis=-1)
        return ids_Rk.reshape(shape), top_Rk.reshape(shape)

    def _table(self, a_PnV: Floats, rows: int) -> Floats:
        return a_PnV.reshape(*a_PnV.shape[:-1], rows, -1)


class NumpyWorker:
    """Measures blocks of up to ``rows`` rows of logits, one position at a time.

    Args:
        wte_VD: the head.
        rows: of a block, at most.
        k: how many of the most probable tokens are listed.
        product: of rows with the head.
        turn: held while rows are measured; see ``NumpyEngine``.
    """

    def __init__(
        self,
        wte_VD: Floats,
        rows: int,
        k: int,
        product: Product,
        turn: AbstractContextManager[Any],
    ) -> None:
        self._product, self._turn = product, turn
        self._arrays = NumpyArrays(len(wte_VD), wte_VD.dtype)
        self._x_RV = self._arrays.empty(rows, self._arrays.width)
        group = max(1, GROUP_BYTES // (self._arrays.width * wte_VD.itemsize))
        self._rows = Rows(self._arrays, slab=1, group=group, k=k)

    def measure(self, h_PND: Floats, tokens_P: Ints, next_P: Ints) -> Measured:
        """Statistics [P, N] of decoded states."""
        positions, states, d = h_PND.shape
        x_RV = self._x_RV[: positions * states]
        x_RV[:, self._arrays.n_vocab :] = -np.inf
        self._product(h_PND.reshape(-1, d), x_RV[:, : self._arrays.n_vocab])
        # What is not finite is reported as undefined.
        with self._turn, np.errstate(all="ignore"):
            return self._rows.measure(x_RV.reshape(positions, states, -1), tokens_P, next_P)


def measure_logits(
    logits_PNV: Floats, tokens_P: Ints, next_P: Ints, k: int, dtype: DTypeLike = np.float64
) -> Measured:
    """Statistics [P, N] of logits that are at hand already; they are not changed.

    Args:
        logits_PNV: P positions, N states.
        tokens_P: the token at each position.
        next_P: the token that follows it; any token where there is none.
        k: how many of the most likely tokens are kept.
        dtype: what to compute in.
    """
    positions, states, n_vocab = logits_PNV.shape
    arrays = NumpyArrays(n_vocab, dtype)
    group = max(1, GROUP_BYTES // (arrays.width * arrays.dtype.itemsize))
    x_PNV = arrays.empty(positions, states, arrays.width)
    x_PNV[..., :n_vocab], x_PNV[..., n_vocab:] = logits_PNV, -np.inf
    with np.errstate(all="ignore"):  # what is not finite is reported as undefined
        return Rows(arrays, slab=1, group=group, k=k).measure(x_PNV, tokens_P, next_P)


class NumpyEngine:
    """Threads of NumPy; as many as its BLAS may use where the engine is made.

    A product is one long call, the passes over its rows are thousands of short ones, between which
    the interpreter changes hands. Threads that did them at the same time would wait for it more
    than they work; so one in three may, which is about the passes' share of the time.

    Args:
        torch_product: have the logits computed by torch.
    """

    def __init__(self, torch_product: bool = False) -> None:
        self._torch_product = torch_product
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        self.workers = max(blas, default=1)
        self._turns = Semaphore(max(1, self.workers // 3))
        self.block_bytes = BLOCK_BYTES

    def rows(self, n_vocab: int, dtype: DTypeLike) -> int:
        """How many rows of logits a block has."""
        width = NumpyArrays(n_vocab, dtype).width
        return max(1, self.block_bytes // (width * np.dtype(dtype).itemsize))

    def worker(self, wte_VD: Floats, rows: int, k: int) -> NumpyWorker:
        product = _torch_product(wte_VD) if self._torch_product else _numpy_product(wte_VD)
        return NumpyWorker(wte_VD, rows, k, product, self._turns)

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
