"""The backward pass of the reference: from the mean loss to the tokens, rule by rule.

One pass has the derivatives of every tensor. It is itself held to central differences, which know
no rule of differentiation (``gpt_verify.graph.differences``). With noise, it says what rounding
in a port's precision does to each derivative. And each rule can be replaced by another one: once a
port is refuted, what an incorrect rule would have given says which rule it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.back import Array, Back, Pulled, Rule, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operations.unembed import times_table
from gpt_verify.graph.run import Alter, of_row, side_by_side
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.draws import perturbations
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites


@dataclass(frozen=True)
class Read:
    """An operation that reads tensors, reached in the backward pass.

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
        """The contribution of each sequence to ``along``."""
        return [pulled.along(direction) for pulled in self.tensors[direction.tensor]]


class Noise:
    """What rounding in a port's precision does to all that its backward pass keeps.

    Args:
        precision: of the port, float32 or narrower.
        rng: of the random perturbations (``gpt_verify.numerics.draws``).
    """

    def __init__(self, precision: Precision, rng: np.random.Generator) -> None:
        self.precision, self._rng = precision, rng

    def forward(self, call: Call, value: Array) -> Array:
        """A value of the forward pass, perturbed and rounded to the format."""
        p = self.precision
        return p.round(value + perturbations(value, p, self._rng))

    def kept(self, d: Array) -> Array:
        """A derivative: perturbed, but not rounded, since a port may scale its loss to stay within
        the format's range; what is below the smallest number is lost wherever it is kept."""
        perturbed: Array = d + perturbations(d, self.precision, self._rng)
        perturbed += np.float32(self.precision.tiny) * self._signs(d.shape)
        return perturbed

    def statistic(self, x: Array) -> Array:
        """A mean or a deviation."""
        return x + perturbations(x, self.precision, self._rng)

    def cancelled(self, step: Step, d: Array) -> Array | float:
        """An error relative to what a rule subtracts from each other, little of which may be
        left."""
        sizes = made_by(step.site).cancels
        return 0.0 if sizes is None else perturbations(sizes(step, d), self.precision, self._rng)

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
        alter: Alter = noise.forward if noise else lambda call, value: value
        rows: list[dict[str, Array]] = [{} for _ in tokens_RT]
        for site, value in side_by_side(config, weights, tokens_RT, self._dtype, alter):
            for row, values in enumerate(rows):
                values[site] = of_row(value, row, len(rows))
        self._values = rows
        self._pending: dict[str, list[_Pending]] = {}

    def reads(self) -> Iterator[Read]:
        """The backward pass by the correct rules, from the last operation that reads a tensor to
        the first."""
        return self._walk(self._first(), len(self._order) - 1, {}, keep=False)

    @cached_property
    def right(self) -> list[Read]:
        """The same, with what ``walk`` needs kept."""
        return list(self._walk(self._first(), len(self._order) - 1, {}, keep=True))

    def walk(self, rules: Mapping[str, Rule]) -> Iterator[Read]:
        """The backward pass with other rules at some sites, from the last of those on, which it
        reaches first."""
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
        steps, operation = [self._step(site, row) for row in range(len(ds))], made_by(site)
        if rule is None and operation.together is not None:
            return operation.together(steps, ds, self._noise)
        rule = rule or operation.back
        return [self._by(rule, step, d) for step, d in zip(steps, ds, strict=True)]

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
