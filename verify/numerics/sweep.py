"""Many runs of the oracle in step, in each of which one tensor is moved a little.

A tensor enters its own operation linearly: moving it by c·v adds to the result of that operation
c times what the operation makes of v alone. Nothing before it changes, so each run branches off
the unmoved one there. From then on all runs pass through the same operations side by side, and
every weight is widened once. The operations are the oracle's own (``reference.ops``), wired as
``verify.sites`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import ops
from reference.config import Config
from verify.numerics.directions import Direction
from verify.numerics.local import vocabulary_tiles
from verify.numerics.parallel import both
from verify.numerics.weights import DeclaredWeights
from verify.sites import Site, before_head, beginnings, sites

Array = NDArray[Any]

#: Elements of the widest activation (four times the residual stream) of all runs at one time.
GROUP_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Losses:
    """What a sweep ends in.

    Attributes:
        unmoved: loss of each prediction in nats, [N].
        moved: the same in each run, [directions, steps, N].
        scale: of each direction, a power of two: a step of 1 moves the tensor by ``scale`` · v, and
            the result of its operation by about its own size (the logits: by about 1).
        squares: Σ of the squared imaginary parts of all that a run kept, [directions, steps].
    """

    unmoved: Array
    moved: Array
    scale: Array
    squares: Array


class Batch:
    """The oracle on a batch, the positions of all rows one below the other.

    N = B (T - 1) positions: the last token of each row is predicted but never read.

    Args:
        config: sizes.
        weights: the tensors.
        tokens_BT: T ≥ 2.
        dtype: of the arithmetic; in a complex one, steps may be imaginary.
        draw: of what is random in it, if anything is: another number, another draw.
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        tokens_BT: NDArray[np.integer],
        dtype: type[np.inexact[Any]] = np.float64,
        draw: int = 0,
    ) -> None:
        self.config, self.weights, self.draw = config, weights, draw
        self.dtype = np.dtype(dtype)
        self.real: np.dtype[Any] = np.zeros(0, dtype).real.dtype
        self.whole_BT, self.tokens_BT = tokens_BT, tokens_BT[:, :-1]
        self.targets_N = tokens_BT[:, 1:].ravel()
        self.sites = sites(config)
        self.order = {name: i for i, name in enumerate(self.sites)}
        self.begins = set(beginnings(config))
        self.last_reader = {name: site.name for site in self.sites.values() for name in site.inputs}
        #: The residual stream of the unmoved run, by the site that begins a block or the end.
        self.states: dict[str, Array] = {}
        unmoved = _Sweep(self, [], np.zeros((0, 1)), [])
        unmoved.states = self.states
        self.unmoved_N = unmoved.losses().unmoved

    def losses(self, directions: Sequence[Direction], steps: Array) -> Losses:
        """Run the model once for each direction and step.

        Args:
            directions: what moves.
            steps: [directions, steps], in units of ``Losses.scale``.
        """
        n, k, size = len(directions), steps.shape[1], len(self.targets_N)
        moved = np.zeros((n, k, size), self.dtype)
        found = Losses(self.unmoved_N, moved, np.ones(n), np.zeros((n, k)))

        def sweep(chosen: list[int]) -> None:
            if chosen:
                some = [directions[i] for i in chosen]
                done = _Sweep(self, some, steps[chosen], chosen).losses()
                found.moved[chosen], found.scale[chosen] = done.moved, done.scale
                found.squares[chosen] = done.squares

        # Neighbours begin at the same block; two groups of them pass side by side.
        order = sorted(range(n), key=lambda i: self.order[directions[i].sites[0]])
        group = max(2, GROUP_ELEMENTS // (4 * self.config.n_embd * size * max(k, 1)))
        for first in range(0, n, group):
            now = order[first : first + group]
            both(partial(sweep, now[0::2]), partial(sweep, now[1::2]))
        return found

    def keep(self, value: Array, rng: np.random.Generator) -> Array:
        """What is left of a value where a port would keep it: here, all of it."""
        return value

    def layer_norm(self, x_ND: Array, rng: np.random.Generator, g_D: Array, b_D: Array) -> Array:
        return ops.layer_norm(x_ND, g_D, b_D)

    def pattern(self, scores: Array, rng: np.random.Generator) -> Array:
        return ops.causal_softmax(scores)

    def gain(self, x_ND: Array, v_D: Array, rng: np.random.Generator) -> Array:
        """What a layer norm makes of v in place of its gain, and of no bias; x is real."""
        return ops.layer_norm(x_ND, v_D, np.zeros(1, self.real))

    def cancelled(self, x_RND: Array, rng: np.random.Generator) -> Array | float:
        """What is lost where the loss subtracts one row of the head from the mean of all."""
        return 0.0

    def weight(self, name: str) -> Array:
        return self.weights.float64(name) if self.real == np.float64 else self.weights[name]

    def linear(self, x_Ni: Array, w_io: Array, b_o: Array) -> Array:
        """``ops.linear``; weights are real, and half of a complex product would be zeros."""
        if self.dtype.kind != "c":
            return ops.linear(x_Ni, w_io, b_o)
        value = np.empty((len(x_Ni), w_io.shape[1]), self.dtype)
        value.real = ops.linear(x_Ni.real, w_io, b_o)
        value.imag = x_Ni.imag @ w_io
        return value


class _Sweep:
    """One pass. Run 0 is unmoved; every array has the runs along its first axis."""

    def __init__(
        self, batch: Batch, directions: Sequence[Direction], steps: Array, seed: Sequence[int]
    ) -> None:
        self.batch, self.directions = batch, directions
        self.rng = np.random.default_rng([batch.draw, len(seed), *seed])
        self.steps, self.n_steps = steps.astype(batch.dtype), int(steps.shape[1])
        self.scale = np.ones(len(directions))
        self.squares = np.zeros(steps.shape)
        #: The directions that have branched off, in the order of their runs.
        self.live: list[int] = []
        self.values: dict[str, Array] = {}
        self.states: dict[str, Array] = {}

    @property
    def n_runs(self) -> int:
        return 1 + len(self.live) * self.n_steps

    def losses(self) -> Losses:
        b = self.batch
        first = min((b.order[d.sites[0]] for d in self.directions), default=0)
        start = next((name for name in reversed(b.states) if b.order[name] <= first), "embed")
        for site in list(b.sites.values())[b.order[start] :]:
            if site.name == start and site.inputs:
                self.values[site.inputs[0]] = b.states[start]
            if site.name in b.begins:
                self.states[site.name] = self.values[site.inputs[0]]
            if site.operation == "unembed":
                break
            value = b.keep(self._branch(site, self._apply(site)), self.rng)
            self._count(value)
            self.values[site.name] = value
            for name in site.inputs:
                if b.last_reader[name] == site.name:
                    del self.values[name]
        return self._unembed(self.values[before_head(b.config)])

    def _apply(self, site: Site) -> Array:
        b = self.batch
        if site.operation == "embed":
            tables = b.weights["wte"], b.weights["wpe"]
            return np.concatenate([ops.embed(row_T, *tables, b.dtype) for row_T in b.tokens_BT])
        x, *more = (self.values[name] for name in site.inputs)
        weights = [b.weight(name) for name in site.weights]
        if site.operation == "layer_norm":
            return b.layer_norm(x, self.rng, *weights)
        if site.operation == "linear":
            return b.linear(x, *weights)
        if site.operation == "pattern":
            return b.pattern(x, self.rng)
        if site.operation == "scores":
            q, k, _ = self._heads(x)
            return ops.attention_scores(q, k)
        if site.operation == "mix":
            # The heads of all runs and rows come out side by side, [T, runs · B · D].
            mix = ops.attention_mix(x, self._heads(more[0])[2])
            d = b.config.n_embd
            return mix.reshape(len(mix), -1, d).swapaxes(0, 1).reshape(-1, d)
        return _ELEMENTWISE[site.operation](x, *more, *weights)

    def _heads(self, x_NC: Array) -> list[Array]:
        """q, k and v as [runs · B · H, T, K]: rows read from each other as little as heads do."""
        b = self.batch
        shape = (b.config.n_head, -1, b.tokens_BT.shape[1], b.config.head_size)
        parts = ops.split_heads(x_NC, b.config.n_head)
        return [p.reshape(shape).swapaxes(0, 1).reshape(-1, *shape[2:]) for p in parts]

    def _branch(self, site: Site, value: Array) -> Array:
        """The runs in which something moves here for the first time, below those that there are."""
        new = [i for i, d in enumerate(self.directions) if d.sites[0] == site.name]
        if not new:
            return value
        base = value[: len(value) // self.n_runs]
        runs = [value]
        for i in new:
            effect = self._effect(site, self.directions[i]).astype(self.batch.real)
            self.scale[i] = _power_of_two(_rms(base), _rms(effect))
            runs += [base + step * (float(self.scale[i]) * effect) for step in self.steps[i]]
        for name, kept in self.values.items():
            unmoved = kept[: len(kept) // self.n_runs]
            self.values[name] = np.concatenate([kept] + [unmoved] * (len(runs) - 1))
        self.live += new
        return np.concatenate(runs)

    def _effect(self, site: Site, d: Direction) -> Array:
        """What the operation makes of v in place of its tensor, and of nothing else."""
        b = self.batch
        if d.tensor.endswith("/b"):
            return np.broadcast_to(d.right, (len(b.targets_N), len(d.right)))
        if site.operation == "layer_norm":
            return b.gain(self._unmoved(site), d.right.astype(b.real), self.rng)
        if d.tensor == "wte":
            rows_N = d.rows(b.tokens_BT.ravel())
        elif d.tensor == "wpe":
            rows_N = np.tile(d.rows(slice(b.tokens_BT.shape[1])), len(b.tokens_BT))
        else:
            rows_N = self._unmoved(site) @ d.rows().astype(b.real)
        return rows_N[:, None] * d.right

    def _unmoved(self, site: Site) -> Array:
        """The input of an operation, without any step."""
        return self.values[site.inputs[0]][: len(self.batch.targets_N)].real

    def _unembed(self, x: Array) -> Losses:
        """The loss of each prediction in each run, from tiles of the vocabulary."""
        b, k, n = self.batch, self.n_steps, len(self.batch.targets_N)
        x_RND = x.reshape(self.n_runs, n, -1)
        moving = {i: d for i, d in enumerate(self.directions) if d.sites[-1] == "logits"}
        late = [i for i, d in moving.items() if d.sites[0] == "logits"]
        # A row of the head moves by a multiple of `right`, its logit by the same multiple of this.
        along = {
            i: (x_RND[:1] if i in late else x_RND[self._runs(i)]) @ d.right.astype(b.real)
            for i, d in moving.items()
        }
        for i in late:
            self.scale[i] = _power_of_two(1.0, _rms(along[i]))
        self.live += late
        losses = _CrossEntropy(b.dtype, self.n_runs, b.targets_N)
        for rows in vocabulary_tiles(len(x), b.config.n_vocab):
            head_DV = b.weights[b.config.head][rows].astype(b.real).T
            y_RNV = b.linear(x, head_DV, np.zeros(1, b.real)).reshape(len(x_RND), n, -1)
            unmoved = np.broadcast_to(y_RNV[:1], (len(late) * k, *y_RNV.shape[1:]))
            y_RNV = np.concatenate([y_RNV, unmoved])
            for i, d in moving.items():
                effect = along[i][..., None] * d.rows(rows).astype(b.real)
                y_RNV[self._runs(i)] += self.steps[i][:, None, None] * (self.scale[i] * effect)
            y_RNV = b.keep(y_RNV, self.rng)
            self._count(y_RNV)
            losses.add(rows.start, y_RNV)
        loss_RN = losses.losses()
        loss_RN[: len(x_RND)] += b.cancelled(x_RND, self.rng)
        moved = np.zeros((len(self.directions), k, n), b.dtype)
        for i in self.live:
            moved[i] = loss_RN[self._runs(i)]
        return Losses(loss_RN[0], moved, self.scale, self.squares)

    def _runs(self, i: int) -> slice:
        first = 1 + self.n_steps * self.live.index(i)
        return slice(first, first + self.n_steps)

    def _count(self, value: Array) -> None:
        if self.batch.dtype.kind == "c":
            squares = np.sum(value.imag.reshape(self.n_runs, -1) ** 2, axis=1)
            for i in self.live:
                self.squares[i] += squares[self._runs(i)]


class _CrossEntropy:
    """log Σ exp(logits) - logit of the target, from tiles of the logits."""

    def __init__(self, dtype: Any, n_runs: int, targets_N: Array) -> None:
        self._targets_N = targets_N
        self._peak = np.full((n_runs, len(targets_N)), -np.inf, dtype=np.zeros(0, dtype).real.dtype)
        self._total = np.zeros(self._peak.shape, dtype)
        self._target = np.zeros(self._peak.shape, dtype)

    def add(self, first: int, y_RNV: Array) -> None:
        peak = np.maximum(self._peak, y_RNV.real.max(axis=-1))
        self._total *= np.exp(self._peak - peak)
        self._total += np.exp(y_RNV - peak[..., None]).sum(axis=-1)
        self._peak = peak
        column_N = self._targets_N - first
        (here,) = np.nonzero((column_N >= 0) & (column_N < y_RNV.shape[-1]))
        self._target[:, here] = y_RNV[:, here, column_N[here]]

    def losses(self) -> Array:
        losses_RN: Array = np.log(self._total) + (self._peak - self._target)
        return losses_RN


_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "gelu": ops.gelu,
    "add": lambda x, y: x + y,
}


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.abs(x.astype(np.complex128)) ** 2)))


def _power_of_two(size: float, effect: float) -> float:
    """Nearest to size / effect; 1 where either is zero or not finite."""
    ratio = size / effect if effect > 0 else 1.0
    return float(2.0 ** np.round(np.log2(ratio))) if 0 < ratio < np.inf else 1.0
