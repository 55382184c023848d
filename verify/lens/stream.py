"""The lens, streamed: logits exist for one block of positions at a time, for all states together.

What is kept of [states, tokens, vocabulary] is one block of rows for each thread, whatever the
number of states and tokens. All states of a position are decoded in the same product, which reads
wte once; nothing is computed twice, because whatever needs the whole row (its maximum, its sum, the
last state's distribution) is at hand when it is needed.

Kept in memory: the decoded states, T · D for each, wte once, and the blocks.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpt_verify.lens.decoders import Decoder, LnF
from gpt_verify.lens.engine_numpy import NumpyEngine
from gpt_verify.lens.engine_torch import TorchEngine
from gpt_verify.lens.rows import Measured
from gpt_verify.lens.statistics import STATISTICS, UNDEFINED, Lens

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Weights = Mapping[str, NDArray[np.floating]]
EngineName = Literal["auto", "numpy", "torch", "cuda"]

#: From this number of operations on, importing torch for its faster product is worth the wait.
WORTH_TORCH = 1e12


class Worker(Protocol):
    """One thread's buffers."""

    def measure(self, h_PND: Floats, tokens_P: Ints, next_P: Ints) -> Measured:
        """Statistics [P, N] of decoded states at some positions."""


class Engine(Protocol):
    """The arithmetic of the lens, on one kind of device.

    Attributes:
        workers: how many threads measure at the same time.
        block_bytes: what the logits of one block may take.
    """

    workers: int
    block_bytes: int

    def rows(self, n_vocab: int, dtype: DTypeLike) -> int:
        """How many rows of logits a block has."""

    def worker(self, wte_VD: Floats, rows: int, k: int) -> Worker:
        """The buffers of one thread."""

    def running(self) -> AbstractContextManager[None]:
        """Around all work."""

    def enter_thread(self) -> None:
        """Prepare a thread; called in each of them before it works."""


def lens(
    states: Iterable[tuple[str, Floats]],
    weights: Weights,
    tokens_T: Ints,
    *,
    decoder: Decoder | None = None,
    k: int = 5,
    dtype: type[np.floating] = np.float32,
    engine: EngineName | Engine = "auto",
) -> Lens:
    """Read every state of the residual stream as if it were the last.

    Args:
        states: ``(site, x[T, D])`` in order of computation, the last one being the model's own;
            ``gpt_verify.lens.states`` has them from the oracle and from ports.
        weights: of the checkpoint: ``wte``, ``ln_f/g``, ``ln_f/b``.
        tokens_T: the ids that were read.
        decoder: how a state becomes what wte is multiplied with; ln_f if not given. States that it
            cannot decode are left out.
        k: how many of the most probable tokens are listed.
        dtype: of the logits: float32, or float64 at half the speed.
        engine: ``numpy``; ``torch``, which is the same with torch's product; ``cuda``; or an
            engine. ``auto`` takes torch where it is installed and there is much to do.

    Raises:
        ValueError: no state, a state that is not [T, D], a site that occurs twice, or tokens that
            are not ids.
    """
    wte_VD = np.ascontiguousarray(weights["wte"], dtype)
    tokens_T = np.asarray(tokens_T)
    _check_tokens(tokens_T, len(wte_VD), k)
    decoder = decoder or LnF(weights)
    decoded = _decoded(states, decoder, (len(tokens_T), wte_VD.shape[1]), dtype)
    if isinstance(engine, str):
        engine = _engine(engine, 2.0 * len(decoded) * len(tokens_T) * wte_VD.size)
    fields = _empty(len(decoded), len(tokens_T), min(k, len(wte_VD)))
    with engine.running():
        _fill(fields, list(decoded.values()), wte_VD, tokens_T, k, engine)
    fields["rank_next"][:, -1] = UNDEFINED
    fields["loss_nats"][:, -1] = np.nan
    return Lens(sites=tuple(decoded), tokens_T=tokens_T, decoder=decoder.name, **fields)


def _check_tokens(tokens_T: Ints, n_vocab: int, k: int) -> None:
    if tokens_T.ndim != 1 or not tokens_T.size or not np.issubdtype(tokens_T.dtype, np.integer):
        raise ValueError("the lens reads one sequence of token ids")
    if tokens_T.min() < 0 or tokens_T.max() >= n_vocab:
        raise ValueError(f"token ids must lie in 0 … {n_vocab - 1}")
    if k < 1:
        raise ValueError(f"k = {k}: at least one token is listed")


def _decoded(
    states: Iterable[tuple[str, Floats]],
    decoder: Decoder,
    shape: tuple[int, int],
    dtype: type[np.floating],
) -> dict[str, Floats]:
    """Site → h[T, D], of which the logits are h wteᵀ."""
    decoded: dict[str, Floats] = {}
    for site, x_TD in states:
        if x_TD.shape != shape:
            raise ValueError(f"{site} has shape {list(x_TD.shape)}, not {list(shape)}")
        if site in decoded:
            raise ValueError(f"{site} occurs twice")
        with np.errstate(all="ignore"):  # what is not finite is reported as undefined
            h_TD = decoder.decode(site, np.asarray(x_TD, np.float64))
            if h_TD is not None:
                decoded[site] = h_TD.astype(dtype)
    if not decoded:
        raise ValueError("there is no state that the decoder can decode")
    return decoded


def _engine(name: EngineName, operations: float) -> Engine:
    if name == "auto":
        # TensorFlow and torch never share a process.
        usable = "tensorflow" not in sys.modules and importlib.util.find_spec("torch") is not None
        name = "torch" if usable and operations >= WORTH_TORCH else "numpy"
    return TorchEngine() if name == "cuda" else NumpyEngine(torch_product=name == "torch")


def _empty(n: int, t: int, k: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: np.empty((n, t), np.int64 if statistic.kind == "rank" else np.float64)
        for name, statistic in STATISTICS.items()
    }
    fields["top_ids"] = np.empty((n, t, k), np.int64)
    fields["top_probabilities"] = np.empty((n, t, k))
    return fields


def _fill(
    fields: dict[str, Any],
    decoded: list[Floats],
    wte_VD: Floats,
    tokens_T: Ints,
    k: int,
    engine: Engine,
) -> None:
    """Measure all blocks, in as many threads as the engine has."""
    rows = engine.rows(len(wte_VD), wte_VD.dtype)
    next_T = np.append(tokens_T[1:], 0)
    blocks, most = [], 0
    for chunk in _chunks(len(decoded), max(rows, 3)):
        positions = _positions(len(tokens_T), max(1, rows // len(chunk)), engine.workers)
        starts = range(0, len(tokens_T), positions)
        blocks += [(chunk, slice(start, start + positions)) for start in starts]
        most = max(most, positions * len(chunk))
    own = threading.local()

    def measure(block: tuple[Ints, slice]) -> None:
        if not hasattr(own, "worker"):
            own.worker = engine.worker(wte_VD, most, k)
        chunk, at = block
        h_PND = np.stack([decoded[n][at] for n in chunk], axis=1)
        measured = own.worker.measure(h_PND, tokens_T[at], next_T[at])
        for name, values in measured.items():
            fields[name][chunk, at] = np.swapaxes(values, 0, 1)

    with ThreadPoolExecutor(engine.workers, initializer=engine.enter_thread) as pool:
        for _done in pool.map(measure, blocks):
            pass


def _positions(tokens: int, most: int, workers: int) -> int:
    """How many are in a block: at most ``most``, and so that no worker is idle at the end."""
    rounds = math.ceil(tokens / (most * workers))
    return math.ceil(tokens / (rounds * workers))


def _chunks(n: int, most: int) -> Iterator[Ints]:
    """The states in groups of at most ``most``, each with the first and the last one."""
    if n <= most:
        yield np.arange(n)
        return
    for start in range(1, n - 1, most - 2):
        yield np.r_[0, start : min(start + most - 2, n - 1), n - 1]
