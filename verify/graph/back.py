"""What an operation is handed in the backward pass, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.directions import Direction
from gpt_verify.graph.heads import Part, split
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import LAYER_NORM_EPSILON, split_heads
from gpt_verify.sites import Site

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
    """One operation of one sequence, in the backward pass.

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
        """The value that the operation made."""
        return self.values[self.site.name]

    def own(self, index: int) -> Array:
        """The tensors that it reads: 0 is the matrix or the gain."""
        return self.weights.in_dtype(self.site.weights[index], self.dtype)

    def part(self, part: Part) -> Array:
        """The queries, keys or values that the scores or the mix read: ``Call.part``."""
        return split(self.config, self.values[self.site.inputs[0 if part == "q" else -1]], part)

    def heads(self) -> tuple[Array, Array, Array]:
        """q, k and v, each [H, T, K]: of them the scores are made, and with v the mix."""
        q, k, v = split_heads(self.values[self.site.inputs[-1]], self.config.n_head)
        return q, k, v


@dataclass(frozen=True)
class Back:
    """The derivatives that an operation hands back.

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
    [T, 3D]: the backward pass of ``reference.ops.split_heads``."""
    known = next(part for part in parts if part is not None)
    whole = np.stack([np.zeros_like(known) if part is None else part for part in parts])
    return whole.transpose(2, 0, 1, 3).reshape(known.shape[1], -1)


def normed(
    x_TD: Array, keep: Keep = lambda x: x, epsilon: float = LAYER_NORM_EPSILON
) -> tuple[Array, Array]:
    """What a layer norm makes before its gain, and the deviation [T, 1] that it divides by; a port
    keeps the mean and the deviation, and centres and projects with them as they are kept."""
    mean_T1 = x_TD.mean(axis=-1, keepdims=True)
    variance_T1 = np.mean((x_TD - mean_T1) ** 2, axis=-1, keepdims=True)
    deviation_T1 = keep(np.sqrt(variance_T1 + epsilon))
    return (x_TD - keep(mean_T1)) / deviation_T1, deviation_T1


def mean(x: Array) -> Array:
    """The mean over the last axis, which is kept."""
    found: Array = x.mean(axis=-1, keepdims=True)
    return found


def mean_of(weights: Array, x: Array) -> Array:
    """The mean over the last axis, which is kept, with weights whose sum is 1."""
    found: Array = np.sum(weights * x, axis=-1, keepdims=True)
    return found
