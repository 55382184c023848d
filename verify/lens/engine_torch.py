"""The lens on a device of torch: whole blocks at a time, nothing of the size of logits comes back.

The arithmetic is that of ``gpt_verify.lens.rows``, as on the processor. torch is imported by
whoever makes an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpt_verify.lens.rows import Measured, Rows

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

#: Logits of a block; three times as much is needed besides.
BLOCK_BYTES = 512 * 1024 * 1024


class TorchArrays:
    """``Arrays`` in torch. Rows are not padded."""

    def __init__(self, n_vocab: int, dtype: DTypeLike, device: str) -> None:
        import torch

        self.xp, self.n_vocab = torch, n_vocab
        self.lowest = float(np.finfo(dtype).min)
        self._dtype, self._device = getattr(torch, np.dtype(dtype).name), torch.device(device)

    def tensor(self, a: NDArray[Any]) -> Any:
        """A copy on the device, of the same dtype."""
        return self.xp.tensor(a, device=self._device)

    def scratch(self, positions: int, rows: int) -> Any:
        shape = (positions, rows, self.n_vocab)
        return self.xp.empty(shape, dtype=self._dtype, device=self._device)

    def zeros(self, *shape: int) -> Any:
        return self.xp.zeros(shape, dtype=self.xp.float64, device=self._device)

    def narrow(self, a: Any) -> Any:
        return a.to(self._dtype)

    def wide(self, a: Any) -> Any:
        return a.double()

    def host(self, a: Any) -> NDArray[Any]:
        found: NDArray[Any] = a.cpu().numpy()
        return found

    def room(self, sums: int, positions: int, states: int) -> Any:
        return self.zeros(sums, positions, states)

    def dot(self, a_PnV: Any, b_PnV: Any, out_Pn: Any) -> None:
        self.total(a_PnV * b_PnV, out_Pn)

    def total(self, a_PnV: Any, out_Pn: Any) -> None:
        self.xp.sum(a_PnV, dim=-1, dtype=self.xp.float64, out=out_Pn)

    def summed(self, room: Any) -> Any:
        return room

    def argmax(self, y_PV: Any) -> Any:
        return self.xp.argmax(y_PV, dim=-1)  # of equal ones the first, by its documentation

    def take(self, y_PnV: Any, ids_Pi: Any) -> Any:
        return self.xp.take_along_dim(y_PnV, ids_Pi[:, None], dim=-1)

    def above(self, y_PnV: Any, own_Pn1: Any, out_Pn: Any) -> None:
        out_Pn[...] = self.xp.count_nonzero(y_PnV > own_Pn1, dim=-1)

    def notes(self, positions: int, states: int) -> Any:
        return self.zeros(positions, states)  # nothing to note

    def largest(self, x_PnV: Any, notes_Pn: Any) -> Any:
        return self.xp.amax(x_PnV, dim=-1, keepdim=True)

    def top(self, y_PNV: Any, notes_PN: Any, k: int) -> tuple[Ints, Floats]:
        """torch.topk says which values are the largest; of equal ones it takes any."""
        largest_PNk, any_PNk = self.xp.topk(y_PNV, k, dim=-1)
        reach = self.xp.count_nonzero(y_PNV >= largest_PNk[..., -1:], dim=-1)
        ids_PNk, top_PNk, reach_PN = (self.host(a) for a in (any_PNk, largest_PNk, reach))
        order = np.lexsort((ids_PNk, -top_PNk))
        ids_PNk = np.take_along_axis(ids_PNk, order, axis=-1)
        for at in np.argwhere(reach_PN > k):
            y_V = self.host(y_PNV[tuple(at)])
            candidates = np.flatnonzero(y_V >= top_PNk[tuple(at)][-1])
            best = np.argsort(-y_V[candidates], kind="stable")[:k]
            ids_PNk[tuple(at)] = candidates[best]
        return ids_PNk, top_PNk.astype(np.float64)


class TorchWorker:
    """Measures blocks of positions on the device.

    Args:
        arrays: the device's arithmetic.
        wte_VD: the head's matrix.
        rows: rows of logits in a block.
        k: how many of the most likely tokens are kept.
    """

    def __init__(self, arrays: TorchArrays, wte_VD: Floats, rows: int, k: int) -> None:
        self._arrays, self._wte = arrays, arrays.tensor(wte_VD)
        self._rows = Rows(arrays, slab=rows, group=rows, k=k)

    def measure(self, h_PND: Floats, tokens_P: Ints, next_P: Ints) -> Measured:
        """Statistics [P, N] of decoded states."""
        arrays, torch = self._arrays, self._arrays.xp
        h, tokens, following = (arrays.tensor(a) for a in (h_PND, tokens_P, next_P))
        with torch.no_grad():
            x_PNV = torch.matmul(h, self._wte.T)
            return self._rows.measure(x_PNV, tokens, following)


class TorchEngine:
    """One device of torch.

    Args:
        device: ``cuda``, or ``cpu`` to try the same operations without one.
    """

    workers = 1

    def __init__(self, device: str = "cuda") -> None:
        self._device = device
        self.block_bytes = BLOCK_BYTES

    def rows(self, n_vocab: int, dtype: DTypeLike) -> int:
        """How many rows of logits a block has."""
        return max(1, self.block_bytes // (n_vocab * np.dtype(dtype).itemsize))

    def worker(self, wte_VD: Floats, rows: int, k: int) -> TorchWorker:
        return TorchWorker(TorchArrays(len(wte_VD), wte_VD.dtype, self._device), wte_VD, rows, k)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The lens runs in full float32: a process that allows TF32 does not allow it here."""
        import torch

        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def enter_thread(self) -> None:
        """Nothing to prepare."""
