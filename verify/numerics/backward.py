"""The derivative of the loss on its way back through the table of sites, rule by rule.

The law of the gradient needs none of this: it holds ports against central differences, which no
rule of differentiation enters. Once a port is refuted, though, what a wrong rule would have given
says which rule it was: each can be replaced by another here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from reference.model import forward
from reference.ops import (
    GELU_CUBIC,
    LAYER_NORM_EPSILON,
    SQRT_2_OVER_PI,
    split_heads,
)
from verify.numerics.directions import Direction
from verify.sites import Site, sites

Array = NDArray[np.floating]
Weights = Mapping[str, NDArray[np.floating]]


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


@dataclass(frozen=True)
class Step:
    """One operation of one sequence, on the way back.

    Attributes:
        config: sizes.
        site: what the operation makes.
        tokens_T: the sequence.
        values: every site of the forward pass.
        weights: checkpoint name → tensor, float64.
        positions: in the whole batch.
    """

    config: Config
    site: Site
    tokens_T: NDArray[np.integer]
    values: Mapping[str, Array]
    weights: Weights
    positions: int

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
        return np.asarray(self.weights[self.site.weights[index]], np.float64)

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


def normed(x_TD: Array) -> tuple[Array, Array]:
    """What a layer norm makes before its gain, and the deviation [T, 1] that it divides by."""
    centred_TD = x_TD - x_TD.mean(axis=-1, keepdims=True)
    variance_T1 = np.mean(centred_TD**2, axis=-1, keepdims=True)
    deviation_T1 = np.sqrt(variance_T1 + LAYER_NORM_EPSILON)
    return centred_TD / deviation_T1, deviation_T1


def mean(x: Array) -> Array:
    """Over the last axis, which is kept."""
    found: Array = x.mean(axis=-1, keepdims=True)
    return found


def norm_back(step: Step, d_TD: Array) -> Back:
    normed_TD, deviation_T1 = normed(step.x)
    e_TD = d_TD * step.own(0)
    x_TD = (e_TD - mean(e_TD) - normed_TD * mean(e_TD * normed_TD)) / deviation_T1
    return Back((x_TD,), (Pulled(None, d_TD * normed_TD), Pulled(None, d_TD)))


def linear_back(step: Step, d_TO: Array) -> Back:
    return Back((d_TO @ step.own(0).T,), (Pulled(step.x, d_TO), Pulled(None, d_TO)))


def scores_back(step: Step, d_HTS: Array) -> Back:
    q_HTK, k_HSK, _ = step.heads()
    d_HTS = d_HTS / np.sqrt(q_HTK.shape[-1])
    return Back((joined(d_HTS @ k_HSK, d_HTS.transpose(0, 2, 1) @ q_HTK, None),))


def softmax_back(pattern_HTS: Array, d_HTS: Array) -> Array:
    """Of what a softmax over the last axis has made."""
    found: Array = pattern_HTS * (d_HTS - (pattern_HTS * d_HTS).sum(axis=-1, keepdims=True))
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
    "unembed": lambda step, d: Back((d @ step.own(0),), (Pulled(d, step.x),)),
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
        return sum(pulled.along(direction) for pulled in self.tensors[direction.tensor])


#: Derivatives that wait for the operation that they belong to, by its site.
_Pending = dict[str, Array]


class Backward:
    """One batch, from the mean loss back to the tokens.

    Args:
        config: sizes.
        weights: as a port holds them.
        tokens_BT: int[B, T], T ≥ 2.
    """

    def __init__(self, config: Config, weights: Weights, tokens_BT: NDArray[np.integer]) -> None:
        self._config, self._weights, self._tokens_BT = config, weights, tokens_BT
        self._values = [dict(forward(weights, config, tokens_T)) for tokens_T in tokens_BT]
        self._order = list(sites(config).values())
        self._pending: dict[str, list[_Pending]] = {}
        first = [{"logits": self._of_loss(row)} for row in range(len(tokens_BT))]
        #: By the right rules, on the way back.
        self.right = list(self._walk(first, len(self._order) - 1, {}, keep=True))

    def walk(self, rules: Mapping[str, Rule]) -> Iterator[Read]:
        """With other rules at some sites, from the last of those on, which is reached first."""
        last = max(i for i, site in enumerate(self._order) if site.name in rules)
        yield from self._walk(self._pending[self._order[last].name], last, rules, keep=False)

    def _walk(
        self, pending: Sequence[_Pending], last: int, rules: Mapping[str, Rule], keep: bool
    ) -> Iterator[Read]:
        waiting = [dict(of_row) for of_row in pending]
        for site in reversed(self._order[: last + 1]):
            if keep:
                self._pending[site.name] = [dict(of_row) for of_row in waiting]
            rule, tensors, square = rules.get(site.name, RULES[site.operation]), [], 0.0
            for row, of_row in enumerate(waiting):
                d = of_row.pop(site.name)
                back = rule(self._step(site, row), d)
                for name, value in zip(site.inputs, back.inputs, strict=True):
                    of_row[name] = of_row[name] + value if name in of_row else value
                tensors.append(back.tensors)
                square += float(np.sum(d**2))
            if site.weights:
                by_tensor = zip(site.weights, zip(*tensors, strict=True), strict=True)
                yield Read(site.name, dict(by_tensor), float(np.sqrt(square)))

    def _step(self, site: Site, row: int) -> Step:
        tokens_T, values = self._tokens_BT[row], self._values[row]
        return Step(self._config, site, tokens_T, values, self._weights, self._tokens_BT.size)

    def _of_loss(self, row: int) -> Array:
        """d mean loss / d logits: softmax less one at the token that came, divided by how many
        there are to predict."""
        logits_TV, tokens_T = self._values[row]["logits"], self._tokens_BT[row]
        exp_TV = np.exp(logits_TV - logits_TV.max(axis=-1, keepdims=True))
        d_TV: Array = exp_TV / exp_TV.sum(axis=-1, keepdims=True)
        d_TV[np.arange(len(tokens_T) - 1), tokens_T[1:]] -= 1
        d_TV[-1] = 0
        return d_TV / (len(self._tokens_BT) * (len(tokens_T) - 1))
