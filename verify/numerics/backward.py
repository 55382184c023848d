"""The backward pass of the reference: from the mean loss to the tokens, rule by rule.

One pass has the derivatives of every tensor. It is itself held to central differences, which know
no rule of differentiation (``gpt_verify.numerics.differences``). With noise, it says what rounding
in a port's precision does to each derivative. And each rule can be replaced by another one: once a
port is refuted, what a wrong rule would have given says which rule it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.directions import Direction
from gpt_verify.numerics.draws import moves
from gpt_verify.numerics.local import vocabulary_tiles
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.runs import Alter, of_row, side_by_side, tensor
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import (
    GELU_CUBIC,
    LAYER_NORM_EPSILON,
    SQRT_2_OVER_PI,
    split_heads,
)
from gpt_verify.sites import Site, sites

Array = NDArray[np.floating]
#: What is left of a number where a port would keep it.
Keep = Callable[[Array], Array]


@dataclass(frozen=True)
class Pulled:
    """What one sequence contributes to the derivative of a tensor: Σ_t rows[t] ⊗ columns[t].

    Never multiplied out: at the head that would be the size of the table.

    Attributes:
        rows: float[T, in] of a matrix; int[T] where each position reads one row of a table; None of
            a vector, whose derivative is the sum of the columns.
        columns: float[T, out].
    """

    rows: NDArray[np.number] | None
    columns: Array

    def along(self, direction: Direction) -> float:
        """⟨derivative, v⟩."""
        weights_T = self.columns @ direction.right
        if self.rows is None:
            return float(weights_T.sum())
        assert direction.left is not None, "the direction of a matrix has two factors"
        if self.rows.ndim == 1:
            return float(direction.left[self.rows] @ weights_T)
        return float((self.rows @ direction.left) @ weights_T)

    @property
    def square(self) -> float:
        """Σ over the elements of the derivative of the squares of all that is added up in them."""
        columns_T = np.sum(np.square(self.columns, dtype=np.float64), axis=-1)
        if self.rows is None or self.rows.ndim == 1:
            return float(columns_T.sum())
        return float(np.sum(np.square(self.rows, dtype=np.float64), axis=-1) @ columns_T)


@dataclass(frozen=True)
class Step:
    """One operation of one sequence, on the way back.

    Attributes:
        config: sizes.
        site: what the operation makes.
        tokens_T: the sequence.
        values: every site of the forward pass.
        weights: the checkpoint's tensors.
        positions: in the whole batch.
        dtype: of the arithmetic.
        keep: what is left of a statistic that a port keeps for its backward pass.
    """

    config: Config
    site: Site
    tokens_T: NDArray[np.integer]
    values: Mapping[str, Array]
    weights: DeclaredWeights
    positions: int
    dtype: type[np.floating] = np.float64
    keep: Keep = lambda x: x

    @property
    def x(self) -> Array:
        """The first input."""
        return self.values[self.site.inputs[0]]

    @property
    def value(self) -> Array:
        """What it made."""
        return self.values[self.site.name]

    def own(self, index: int) -> Array:
        """The tensors that it reads: 0 is the matrix or the gain."""
        return tensor(self.weights, self.site.weights[index], self.dtype)

    def heads(self) -> tuple[Array, Array, Array]:
        """q, k and v, each [H, T, K]: of them the scores are made, and with v the mix."""
        q, k, v = split_heads(self.values[self.site.inputs[-1]], self.config.n_head)
        return q, k, v


@dataclass(frozen=True)
class Back:
    """What an operation hands back.

    Attributes:
        inputs: the derivative with respect to each of its inputs.
        tensors: with respect to each tensor that it reads.
    """

    inputs: tuple[Array, ...]
    tensors: tuple[Pulled, ...] = ()


#: The operation and the derivative with respect to what it made → what it hands back.
Rule = Callable[[Step, Array], Back]


def joined(*parts: Array | None) -> Array:
    """Derivatives of q, k and v, each [H, T, K] or None for zero → of the three side by side,
    [T, 3D]: the way back of ``reference.ops.split_heads``."""
    known = next(part for part in parts if part is not None)
    whole = np.stack([np.zeros_like(known) if part is None else part for part in parts])
    return whole.transpose(2, 0, 1, 3).reshape(known.shape[1], -1)


def normed(x_TD: Array, keep: Keep = lambda x: x) -> tuple[Array, Array]:
    """What a layer norm makes before its gain, and the deviation [T, 1] that it divides by; a port
    keeps the mean and the deviation, and centres and projects with them as they are kept."""
    mean_T1 = x_TD.mean(axis=-1, keepdims=True)
    variance_T1 = np.mean((x_TD - mean_T1) ** 2, axis=-1, keepdims=True)
    deviation_T1 = keep(np.sqrt(variance_T1 + LAYER_NORM_EPSILON))
    return (x_TD - keep(mean_T1)) / deviation_T1, deviation_T1


def mean(x: Array) -> Array:
    """Over the last axis, which is kept."""
    found: Array = x.mean(axis=-1, keepdims=True)
    return found


def mean_of(weights: Array, x: Array) -> Array:
    """Over the last axis, which is kept, with weights whose sum is 1."""
    found: Array = np.sum(weights * x, axis=-1, keepdims=True)
    return found


def norm_back(step: Step, d_TD: Array) -> Back:
    normed_TD, deviation_T1 = normed(step.x, step.keep)
    e_TD = d_TD * step.own(0)
    x_TD = (e_TD - mean(e_TD) - normed_TD * mean(e_TD * normed_TD)) / deviation_T1
    return Back((x_TD,), (Pulled(None, d_TD * normed_TD), Pulled(None, d_TD)))


def linear_back(step: Step, d_TO: Array) -> Back:
    return Back((d_TO @ step.own(0).T,), (Pulled(step.x, d_TO), Pulled(None, d_TO)))


def scores_back(step: Step, d_HTS: Array) -> Back:
    q_HTK, k_HSK, _ = step.heads()
    d_HTS = d_HTS / float(np.sqrt(q_HTK.shape[-1]))
    return Back((joined(d_HTS @ k_HSK, d_HTS.transpose(0, 2, 1) @ q_HTK, None),))


def softmax_back(pattern_HTS: Array, d_HTS: Array) -> Array:
    """Of what a softmax over the last axis has made."""
    found: Array = pattern_HTS * (d_HTS - mean_of(pattern_HTS, d_HTS))
    return found


def pattern_back(step: Step, d_HTS: Array) -> Back:
    return Back((softmax_back(step.value, d_HTS),))


def mix_back(step: Step, d_TD: Array, pattern_HTS: Array | None = None) -> Back:
    """Of the sum over sources, weighted by the pattern; by another one where that is given."""
    _, _, v_HSK = step.heads()
    pattern_HTS = step.x if pattern_HTS is None else pattern_HTS
    d_HTK = d_TD.reshape(len(d_TD), len(v_HSK), -1).transpose(1, 0, 2)
    of_v = pattern_HTS.transpose(0, 2, 1) @ d_HTK
    return Back((d_HTK @ v_HSK.transpose(0, 2, 1), joined(None, None, of_v)))


def gelu_slope(x: Array, cubic: float = 3.0) -> Array:
    """d gelu / d x; ``cubic`` is the exponent that the inner derivative brings down."""
    tanh = np.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x**3))
    inner = SQRT_2_OVER_PI * (1 + cubic * GELU_CUBIC * x**2)
    slope: Array = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * inner
    return slope


def unembed_back(step: Step, d_TV: Array) -> Back:
    return Back((times_table(d_TV, step),), (Pulled(d_TV, step.x),))


def times_table(d_NV: Array, step: Step, squared: bool = False) -> Array:
    """Σ_v d_v · row v of the head, a tile at a time; ``squared``: of its squares."""
    head_VD = step.weights[step.config.head]
    total_ND = np.zeros((len(d_NV), step.config.n_embd), step.dtype)
    for rows in vocabulary_tiles(1, step.config.n_vocab, step.config.n_embd):
        tile_VD = head_VD[rows].astype(step.dtype, copy=False)
        total_ND += d_NV[:, rows] @ (tile_VD**2 if squared else tile_VD)
    return total_ND


def embed_back(step: Step, d_TD: Array) -> Back:
    return Back((), (Pulled(step.tokens_T, d_TD), Pulled(np.arange(len(d_TD)), d_TD)))


#: Operation → its rule.
RULES: Mapping[str, Rule] = {
    "embed": embed_back,
    "layer_norm": norm_back,
    "linear": linear_back,
    "scores": scores_back,
    "pattern": pattern_back,
    "mix": mix_back,
    "gelu": lambda step, d: Back((d * gelu_slope(step.x),)),
    "add": lambda step, d: Back((d, d)),
    "unembed": unembed_back,
}


@dataclass(frozen=True)
class Read:
    """An operation that reads tensors, reached on the way back.

    Attributes:
        site: what it makes.
        tensors: each tensor that it reads → what every sequence contributes to its derivative.
        size: of the derivative with respect to what it makes, over the whole batch (2-norm).
    """

    site: str
    tensors: Mapping[str, Sequence[Pulled]]
    size: float

    def along(self, direction: Direction) -> float:
        """⟨derivative of this tensor through this operation, v⟩."""
        return sum(self.by_row(direction))

    def by_row(self, direction: Direction) -> list[float]:
        """What each sequence contributes to it."""
        return [pulled.along(direction) for pulled in self.tensors[direction.tensor]]


class Noise:
    """What rounding in a port's precision does to all that its backward pass keeps.

    Args:
        precision: of the port, float32 or narrower.
        rng: of the random moves (``gpt_verify.numerics.draws``).
    """

    def __init__(self, precision: Precision, rng: np.random.Generator) -> None:
        self.precision, self._rng = precision, rng

    def forward(self, site: Site, value: Array, inputs: Mapping[str, Array]) -> Array:
        """A value of the forward pass, moved and rounded to the format."""
        p = self.precision
        return p.round(value + moves(value, p, self._rng))

    def kept(self, d: Array) -> Array:
        """A derivative: moved, but not rounded, since a port may scale its loss to stay within the
        format's range; what is below the smallest number is lost wherever it is kept."""
        moved: Array = d + moves(d, self.precision, self._rng)
        moved += np.float32(self.precision.tiny) * self._signs(d.shape)
        return moved

    def statistic(self, x: Array) -> Array:
        """A mean or a deviation."""
        return x + moves(x, self.precision, self._rng)

    def cancelled(self, step: Step, d: Array) -> Array | float:
        """An error relative to what a rule subtracts from each other, little of which may be left:
        a layer norm centres and projects, with x as it is (b · x + c) in torch's kernels; a softmax
        takes away what its sources have in common."""
        if step.site.operation == "pattern":
            size = step.value * (np.abs(d) + mean_of(step.value, np.abs(d)))
        elif step.site.operation == "layer_norm":
            x_TD, size_TD = np.abs(step.x), np.abs(d * step.own(0))
            _, deviation_T1 = normed(step.x)
            relative_TD = 1 + (x_TD + mean(x_TD)) / deviation_T1
            size = (size_TD + mean(size_TD) * relative_TD) / deviation_T1
        else:
            return 0.0
        return moves(size, self.precision, self._rng)

    def summed(self, step: Step, d_ND: Array, d_NV: Array) -> Array:
        """The derivative by the last state is a sum over all rows of the head, in which almost
        everything may cancel: an error relative to what is added up."""
        p = self.precision
        size_ND = np.sqrt(step.config.n_vocab * times_table(d_NV**2, step, squared=True))
        return d_ND + np.float32(p.u_sum) * size_ND * self._signs(d_ND.shape)

    def _signs(self, shape: tuple[int, ...]) -> Array:
        signs: Array = 2 * self._rng.random(shape, np.float32) - 1
        return signs


#: Derivatives that wait for the operation that they belong to, by its site.
_Pending = dict[str, Array]


class Backward:
    """A batch, from the mean loss of a part of it back to the tokens.

    Args:
        config: sizes.
        weights: as a port holds them.
        tokens_RT: int[R, T], T ≥ 2.
        noise: of a port's precision, in which case the arithmetic is float32's; None for the exact
            derivatives, in float64.
        batch: rows that make up one batch, over whose predictions the loss is the mean; all where
            None.
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        tokens_RT: NDArray[np.integer],
        noise: Noise | None = None,
        batch: int | None = None,
    ) -> None:
        self._config, self._weights, self._tokens_RT = config, weights, tokens_RT
        self._noise, self._batch = noise, batch or len(tokens_RT)
        self._dtype: type[np.floating] = np.float32 if noise else np.float64
        self._order = list(sites(config).values())
        alter: Alter = noise.forward if noise else lambda site, value, inputs: value
        rows: list[dict[str, Array]] = [{} for _ in tokens_RT]
        for site, value in side_by_side(config, weights, tokens_RT, self._dtype, alter):
            for row, values in enumerate(rows):
                values[site.name] = of_row(site, value, row, len(rows))
        self._values = rows
        self._pending: dict[str, list[_Pending]] = {}

    def reads(self) -> Iterator[Read]:
        """By the correct rules, from the last operation that reads a tensor to the first."""
        return self._walk(self._first(), len(self._order) - 1, {}, keep=False)

    @cached_property
    def right(self) -> list[Read]:
        """The same, with what ``walk`` needs kept."""
        return list(self._walk(self._first(), len(self._order) - 1, {}, keep=True))

    def walk(self, rules: Mapping[str, Rule]) -> Iterator[Read]:
        """With other rules at some sites, from the last of those on, which is reached first."""
        assert self.right, "it is walked with the correct rules first"
        last = max(i for i, site in enumerate(self._order) if site.name in rules)
        yield from self._walk(self._pending[self._order[last].name], last, rules, keep=False)

    def _first(self) -> list[_Pending]:
        return [{"logits": self._of_loss(row)} for row in range(len(self._tokens_RT))]

    def _walk(
        self, pending: Sequence[_Pending], last: int, rules: Mapping[str, Rule], keep: bool
    ) -> Iterator[Read]:
        waiting = [dict(ds) for ds in pending]
        for site in reversed(self._order[: last + 1]):
            if keep:
                self._pending[site.name] = [dict(ds) for ds in waiting]
            here = [ds.pop(site.name) for ds in waiting]
            backs = self._backs(site, here, rules.get(site.name))
            for ds, back in zip(waiting, backs, strict=True):
                for name, value in zip(site.inputs, back.inputs, strict=True):
                    ds[name] = self._kept(ds[name] + value if name in ds else value)
            if site.weights:
                every = zip(*(back.tensors for back in backs), strict=True)
                square = sum(float(np.sum(np.square(d, dtype=np.float64))) for d in here)
                by_tensor = zip(site.weights, every, strict=True)
                yield Read(site.name, dict(by_tensor), float(np.sqrt(square)))

    def _backs(self, site: Site, ds: Sequence[Array], rule: Rule | None) -> list[Back]:
        """What the operation hands back of each row."""
        steps = [self._step(site, row) for row in range(len(ds))]
        if rule is not None or site.operation not in ("linear", "unembed"):
            rule = rule or RULES[site.operation]
            return [self._by(rule, step, d) for step, d in zip(steps, ds, strict=True)]
        # All rows in one product: the matrix is read once.
        d_NO = np.concatenate(ds)
        if site.operation == "linear":
            x_NI: Array = d_NO @ steps[0].own(0).T
            parts = zip(np.split(x_NI, len(ds)), steps, ds, strict=True)
            return [Back((x,), (Pulled(s.x, d), Pulled(None, d))) for x, s, d in parts]
        x_NI = times_table(d_NO, steps[0])
        if self._noise:
            x_NI = self._noise.summed(steps[0], x_NI, d_NO)
        parts = zip(np.split(x_NI, len(ds)), steps, ds, strict=True)
        return [Back((x,), (Pulled(d, s.x),)) for x, s, d in parts]

    def _by(self, rule: Rule, step: Step, d: Array) -> Back:
        back = rule(step, d)
        if self._noise is None or not back.inputs:
            return back
        first, *more = back.inputs
        return replace(back, inputs=(first + self._noise.cancelled(step, d), *more))

    def _kept(self, d: Array) -> Array:
        return self._noise.kept(d) if self._noise else d

    def _step(self, site: Site, row: int) -> Step:
        return Step(
            self._config,
            site,
            self._tokens_RT[row],
            self._values[row],
            self._weights,
            self._batch * self._tokens_RT.shape[1],
            self._dtype,
            self._noise.statistic if self._noise else lambda x: x,
        )

    def _of_loss(self, row: int) -> Array:
        """d mean loss / d logits: softmax less one at the token that came, divided by how many
        there are to predict."""
        logits_TV, tokens_T = self._values[row]["logits"], self._tokens_RT[row]
        exp_TV = np.exp(logits_TV - logits_TV.max(axis=-1, keepdims=True))
        d_TV: Array = exp_TV / exp_TV.sum(axis=-1, keepdims=True)
        d_TV[np.arange(len(tokens_T) - 1), tokens_T[1:]] -= 1
        d_TV[-1] = 0
        d_TV /= self._batch * (len(tokens_T) - 1)
        return self._kept(d_TV)
