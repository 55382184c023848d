"""What an operation is: one record, of which every loop over the table of sites takes its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.back import Back, Rule, Step
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.directions import Direction
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site

Array = NDArray[np.floating]


class At(Protocol):
    """What a local comparison hands an operation of one sequence.

    Attributes:
        config: sizes.
        site: what it makes.
        tokens_T: the sequence.
        heads: the heads that are asked for, of an operation whose result is [H, T, S].
    """

    @property
    def config(self) -> Config: ...
    @property
    def site(self) -> Site: ...
    @property
    def tokens_T(self) -> NDArray[np.integer]: ...
    @property
    def heads(self) -> slice: ...

    def input(self, index: int, heads: slice | None = None) -> Measured:
        """What the operation reads, as the port has shown it, or bridged.

        Raises:
            NotShown: it was neither shown, nor can be bridged.
        """

    def hidden(self, index: int) -> At | None:
        """The operation that makes what it reads, where the port does not show that; None where it
        does."""

    def narrow(self, index: int) -> Array:
        """A tensor that it reads, in float32."""

    def wide(self, index: int) -> Array:
        """The same in float64."""


class Summing(Protocol):
    """Noise of a sum over the whole vocabulary (``gpt_verify.graph.backward.Noise``)."""

    def summed(self, step: Step, d_ND: Array, d_NV: Array) -> Array: ...


#: The operation with its inputs, and v in place of one tensor → what it makes of v alone.
Effect = Callable[[Call, Direction], Array]
#: The backward rule of several sequences in one, so that a matrix is read once.
Together = Callable[[Sequence[Step], Sequence[Array], "Summing | None"], list[Back]]


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        value: the reference's own, of one sequence or of several.
        budget: value in float64 and rounding budget, from what a port has shown.
        back: its backward rule.
        effect: how a small step of one of its tensors shows in what it makes; None where it reads
            none.
        together: the backward rule of several sequences; None where each goes by itself.
        cancels: sizes of what the backward rule subtracts from each other, little of which may be
            left: what is kept of it is rounded relative to these. None where nothing cancels.
        bridged: where a port does not show it, it is computed rather than given up. A product with
            a matrix is not: an error in it would be charged to the next operation.
        by_head: its result is [H, T, S].
        masked: of its result only what comes from no later token counts.
        product: it multiplies with a matrix of the checkpoint.
        by_vocabulary: its result is as wide as the vocabulary, and made in tiles of it.
        looks_up: it reads rows of tables, and no site.
        normalises: adding a constant to what it reads changes nothing.
        adds: a constant in what it reads is a constant in what it makes.
    """

    value: Override
    budget: Callable[[Precision, At], Measured]
    back: Rule
    effect: Effect | None = None
    together: Together | None = None
    cancels: Callable[[Step, Array], Array] | None = None
    bridged: bool = True
    by_head: bool = False
    masked: bool = False
    product: bool = False
    by_vocabulary: bool = False
    looks_up: bool = False
    normalises: bool = False
    adds: bool = False
