"""What a recipe is, and what it is handed: an operation, and what the port has shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.heads import Part, split
from gpt_verify.graph.local import Asked, NotShown
from gpt_verify.graph.table import made_by
from gpt_verify.graph.tiles import EVERY
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.recipes.arithmetic import Array, Span, exact
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites


@dataclass(frozen=True)
class Read:
    """One operation of one sequence, about to be computed as a port may have done.

    Attributes:
        config: sizes.
        site: what it makes.
        tokens_T: the sequence.
        values: the sites that the port has shown before, [T, F] or [H, T, S], in float64.
        weights: the checkpoint's tensors in the format that the port declares.
        declared: that format.
        tokens_V: of logits over a large vocabulary, the ids of which they are made; None for all.
    """

    config: Config
    site: Site
    tokens_T: NDArray[np.integer]
    values: Mapping[str, Array]
    weights: DeclaredWeights
    declared: Precision
    tokens_V: NDArray[np.int64] | None = None

    def shown(self, name: str) -> Span:
        """A site, exactly as the port has it.

        Raises:
            NotShown: the port has not shown it.
        """
        if name not in self.values:
            raise NotShown(name)
        return exact(self.values[name])

    def input(self, index: int = 0) -> Span:
        """What the operation reads; raises NotShown."""
        return self.shown(self.site.inputs[index])

    def part(self, part: Part) -> Span:
        """Queries, keys or values as the operation reads them, [H, T, K]; raises NotShown."""
        read = self.input(0 if part == "q" else -1)
        return read.each(lambda x: split(self.config, x, part))

    def tensor(self, index: int) -> Array:
        """A tensor that it reads, as the port holds it."""
        name = self.site.weights[index]
        if self.tokens_V is None:
            return self.weights.float64(name)
        return np.asarray(self.weights.rows(name, self.tokens_V), np.float64)

    def full(self, index: int) -> Array:
        """The same as the checkpoint has it."""
        return np.asarray(self.weights.tensors[self.site.weights[index]], np.float64)

    def of(self, name: str) -> Read:
        """The operation of another site, from the same numbers."""
        return replace(self, site=sites(self.config)[name])

    def right(self) -> Array:
        """What the reference makes of what the port has shown, in float64; raises NotShown."""
        if self.tokens_V is not None:
            made = self.input().mid @ self.tensor(0).T
            return made + self.tensor(1) if len(self.site.weights) > 1 else made
        return self._right(self.site)

    def _right(self, site: Site) -> Array:
        def measure(name: str, p: Precision, heads: slice) -> Measured:
            if name in self.values:
                return Measured(self.values[name])
            hidden = sites(self.config)[name]
            if not made_by(hidden).bridged:
                raise NotShown(name)
            return Measured(self._right(hidden))

        at = Asked(self.config, self.tokens_T, EVERY, site, self.declared, measure, self.weights)
        return made_by(site).budget(self.declared, at).value


#: What the operation comes to, before its result is stored as the port shows it.
Make = Callable[[Read], Span]


@dataclass(frozen=True)
class Recipe:
    """One way of computing an operation.

    Attributes:
        name: by which it is declared: ``cast-before-gain``.
        words: what the report says, after the name of the operation; ``{half}`` stands for the
            declared format.
        make: what it comes to; raises NotShown where it reads what the port does not show.
        of: which models have this way of computing.
        plain: the recipe that this one is where a cast changes nothing, a factor is a power of two,
            or there is no bias; empty for none.
        by_distances: its order of summation changes more than a few bits: distances from the right
            value are compared, as distributions, and not bits. What it does not make is not a
            number.
        whole: it looks at an attention as a whole, shown or not; not said where the parts are.
    """

    name: str
    words: str
    make: Make
    of: Callable[[Config], bool] = lambda config: True
    plain: str = ""
    by_distances: bool = False
    whole: bool = False
