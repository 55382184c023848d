"""Cascaded comparison: the port's run against the oracle's own run, from the tokens on.

How far may they part? As far as rounding takes them, and that is measured: the same reference,
run in the port's precision, parts from float64 by the *noise floor* of these weights and this
input. All runs advance in step with the port, so that one layer is in memory at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.call import Call
from gpt_verify.graph.last_norm import read_by_the_head, stream_before
from gpt_verify.graph.operations.unembed import Head
from gpt_verify.graph.run import side_by_side
from gpt_verify.graph.tiles import vocabulary_tiles
from gpt_verify.numerics.draws import Rounding, draws
from gpt_verify.numerics.parallel import both
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.recording import Pair
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.reference.config import Config
from gpt_verify.reference.model import forward
from gpt_verify.reference.weights import parameter_count
from gpt_verify.sites import before_head, sites

Floats = NDArray[np.floating]

#: Largest error of a correct port, in floors: a normal error exceeds ten times what twelve
#: observations say of it (``draws.OBSERVATIONS``) with probability 4e-7, Student's distribution.
#: docs/numerics.md says how large the floors of correct ports are.
LIMIT_FLOORS = 10.0
#: A difference that rounding undoes: a normal one is exceeded with probability 3e-7. With fewer
#: draws than so many those of all tokens say how large a deviation is.
NEAR, FEW = 5.0, 6
#: Of the random perturbations of the logits, which are not part of the run that is kept.
LAST = 1


class Lockstep:
    """The oracle in float64 and in the port's precision, one sequence, advanced site by site.

    In the port's precision it runs as often as ``gpt_verify.numerics.draws`` says, R times below.

    Args:
        config: sizes.
        weights: the checkpoint's tensors, in the precision that the port declares.
        precision: what the port computes in.
        tokens_T: the sequence, int[T].
        count: R, where it is not that of a sequence whose positions are taken together. Such a run
            is not kept for the next port, and only the site that is asked for is remembered.
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        precision: Precision,
        tokens_T: NDArray[np.integer],
        count: int | None = None,
    ) -> None:
        self._weights, self._config, self._tokens_T = weights, config, tokens_T
        # Rounding noise is proportional to u, so float64's floor is float32's, scaled.
        narrow = FLOAT32 if precision.name == "float64" else precision
        self._narrow, self.scale = narrow, precision.u / narrow.u
        self._draws = count or draws(len(tokens_T), len(tokens_T) * parameter_count(config))
        rounding = partial(_rounding, narrow, tokens_T)
        run = partial(_run, config, weights, tokens_T, self._draws, rounding, self.scale == 1.0)
        kept = weights.recording if count is None else None
        self._runs = kept.of(config, tokens_T, run) if kept else run()
        self._last_rounding = partial(rounding, LAST)
        #: How many sites back may still be asked for: those of a block, in whatever order.
        self._window = 14 if count is None else 1
        self._order = {name: i for i, name in enumerate(sites(config))}
        self._passed: dict[str, tuple[Floats, Floats]] = {}
        self._at = -1

    def value(self, name: str) -> tuple[Floats, Floats] | None:
        """(exact value, noise [R, …]) of a site; None if it was asked for out of order and is
        gone."""
        target = self._order[name]
        while self._at < target:
            site, exact, noisy = next(self._runs)
            self._at = self._order[site]
            self._passed[site] = (exact, noisy)
            for old in [s for s in self._passed if self._order[s] <= self._at - self._window]:
                del self._passed[old]
        if name not in self._passed:
            return None
        exact, noisy = self._passed[name]
        return exact, (noisy - exact) * self.scale

    def logits(self, first: int = 0) -> Iterator[tuple[int, Floats, Floats]]:
        """The last site in tiles: ``(first token, exact [T, tile], noise [R, T, tile])``.

        ``first``: the positions before it are left out.
        """
        last = before_head(self._config)
        self.value(last)
        exact_TD, noisy_RTD = (x[..., first:, :] for x in self._passed[last])
        noisy_RTD = self._as_noisy_as_the_norm(exact_TD, noisy_RTD, first)
        head = Head(self._config, self._weights.__getitem__)
        store = self._last_rounding()
        sizes = self._config.n_vocab, self._config.n_embd
        for rows in vocabulary_tiles(len(exact_TD), *sizes):
            exact, noisy = both(
                partial(head.logits, exact_TD, rows),
                partial(_noisy_logits, noisy_RTD, head, rows, store),
                exact_TD.size * (rows.stop - rows.start),
            )
            yield rows.start, exact, (noisy - exact) * self.scale

    def _as_noisy_as_the_norm(self, exact_TD: Floats, noisy_RTD: Floats, first: int) -> Floats:
        """The noisy runs, with what the last norm's own rounding may do in the place of theirs,
        at the positions where that is beyond their limit.

        The oracle's norm of a stream without variance (of one channel, say) is exact in any
        arithmetic; another one's, which takes the mean out in another order, divides what is left
        by next to nothing.
        """
        config, name = self._config, stream_before(self._config)
        stream = self._passed.get(name)
        if stream is None or name == before_head(config):
            return noisy_RTD
        read = read_by_the_head(
            config, self._weights, self._narrow, self._tokens_T, stream[0][first:]
        )
        assert read.budget is not None, "an operation's result has a budget"
        own_T = np.sqrt(np.mean(read.budget**2, axis=-1))
        noise_T = np.sqrt(np.mean((noisy_RTD - exact_TD) ** 2, axis=(0, -1)))
        ill_T = own_T > LIMIT_FLOORS * noise_T
        if not ill_T.any():
            return noisy_RTD
        signs = np.random.default_rng(len(self._tokens_T)).choice((-1.0, 1.0), noisy_RTD.shape)
        moved = (exact_TD + signs * read.budget).astype(noisy_RTD.dtype)
        return np.where(ill_T[:, None], moved, noisy_RTD)


def _run(
    config: Config,
    weights: DeclaredWeights,
    tokens_T: NDArray[np.integer],
    count: int,
    rounding: Callable[[], Rounding],
    to_others: bool,
) -> Iterator[Pair]:
    """All runs, site by site. Nobody asks for the logits, which have a tiled form of their own.

    Args:
        config, weights, tokens_T, count, rounding: as of ``Lockstep``.
        to_others: one of the noisy runs gives tokens to other experts (``given_to_others``).
    """
    exact_run = forward(Widened(weights), config, tokens_T)
    store, rows = rounding(), np.tile(tokens_T, (count, 1))
    routers: dict[str, Floats] = {}

    def stored(call: Call, x: Floats) -> Floats:
        made = store(x)
        known = routers.pop(call.site.name, None)
        return made if known is None else given_to_others(config, known, made)

    noisy_runs = side_by_side(config, weights, rows, np.float32, stored)
    work = len(tokens_T) * parameter_count(config) // len(sites(config))
    for name, made in sites(config).items():
        if to_others and made.kind == "mlp.router":
            site, exact = next(exact_run)
            routers[name] = exact
            _, noisy = next(noisy_runs)
        else:
            (site, exact), (_, noisy) = both(
                lambda: next(exact_run), lambda: next(noisy_runs), work
            )
        yield site, exact, noisy.reshape(count, *exact.shape)


def given_to_others(config: Config, router_TE: Floats, noisy_NE: Floats) -> Floats:
    """The routers' logits of all noisy runs, of which the first gives every token to another expert
    that rounding may give to one.

    That is one whose last chosen expert and first left out lie no further apart than ``NEAR``
    deviations of their difference. Seldom does one of a dozen draws do it, and a correct port may.

    Args:
        config: of a model of experts.
        router_TE: exact.
        noisy_NE: R times, one below the other, [R · T, E].
    """
    experts = config.keys.experts
    if experts is None or experts.chosen == experts.count:
        return noisy_NE
    noisy_RTE = noisy_NE.reshape(-1, *router_TE.shape).copy()
    order_TE, t = np.argsort(-router_TE, axis=-1, kind="stable"), np.arange(len(router_TE))
    last_T, out_T = order_TE[:, experts.chosen - 1], order_TE[:, experts.chosen]
    apart_T = router_TE[t, last_T] - router_TE[t, out_T]
    off_RT = noisy_RTE[:, t, last_T] - noisy_RTE[:, t, out_T] - apart_T
    deviation_T = np.sqrt(np.mean(off_RT**2, axis=0))
    if len(off_RT) < FEW:
        deviation_T = np.maximum(deviation_T, np.sqrt(np.mean(off_RT**2)))
    near_T = t[apart_T <= NEAR * deviation_T]
    last, out = last_T[near_T], out_T[near_T]
    two = noisy_RTE[0, near_T, last], noisy_RTE[0, near_T, out]
    lower, higher = np.minimum(*two), np.maximum(*two)
    noisy_RTE[0, near_T, last] = lower
    noisy_RTE[0, near_T, out] = np.where(higher > lower, higher, np.nextafter(higher, np.inf))
    return noisy_RTE.reshape(noisy_NE.shape)


def _rounding(narrow: Precision, tokens_T: NDArray[np.integer], *key: int) -> Rounding:
    """The rounding of all draws, the same for the same tokens."""
    return Rounding(narrow, zlib.crc32(np.asarray(tokens_T, "<i8").tobytes()), *key)


def _noisy_logits(x_RTD: Floats, head: Head, rows: slice, store: Rounding) -> Floats:
    x_ND = x_RTD.reshape(-1, x_RTD.shape[-1])
    return store(head.logits(x_ND, rows)).reshape(*x_RTD.shape[:2], -1)


@dataclass
class CascadeScores:
    """Squared error and squared floor of one site, channel by channel, over a whole run.

    The floor of a channel is the measured noise together with the operation's own budget, so
    that a channel whose noise happened to be small cannot make a correct port look wrong.
    """

    _error: Floats = field(default_factory=lambda: np.zeros(0))
    _floor: Floats = field(default_factory=lambda: np.zeros(0))
    _count: int = 0

    def add(
        self,
        error: Floats,
        noise: Floats,
        budget: Floats | None,
        first: int = 0,
        channels: int = 0,
    ) -> None:
        """Add the errors of one sequence, or of some of its channels.

        Args:
            error: port minus oracle, [T, F], or [H, T, S] of which s ≤ t counts.
            noise: the oracle in the port's precision minus the oracle, R draws: [R, T, F] or [R, H,
                T, S].
            budget: the operation's own, of the shape of the error; None for none.
            first: the channel at which they begin, where they come in tiles.
            channels: how many the site has in all; 0 where the error has them all.
        """
        floor = np.mean(noise**2, axis=0)
        if budget is not None:
            floor += budget**2
        squares = np.where(np.isfinite(error), error, np.inf) ** 2
        if error.ndim == 3:
            below = np.tri(*error.shape[-2:], dtype=np.bool_)
            squares, floor = np.where(below, squares, 0.0), np.where(below, floor, 0.0)
            squares, floor = squares.sum(axis=(1, 2)), floor.sum(axis=(1, 2))
        else:
            squares, floor = squares.sum(axis=0), floor.sum(axis=0)
        size = max(channels, first + len(squares))
        if len(self._error) < size:
            self._error = np.pad(self._error, (0, size - len(self._error)))
            self._floor = np.pad(self._floor, (0, size - len(self._floor)))
        self._error[first : first + len(squares)] += squares
        self._floor[first : first + len(squares)] += floor
        self._count += 1

    @property
    def seen(self) -> bool:
        return self._count > 0

    def floors(self) -> float:
        """Error in floors: root mean over the channels of squared error / squared floor."""
        used = self._floor > 0
        wrong = self._error[~used] > 0
        if wrong.any():
            return math.inf
        if not used.any():
            return 0.0
        return math.sqrt(float(np.mean(self._error[used] / self._floor[used])))
