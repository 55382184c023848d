"""Local comparison: what an operation should have made of the port's own input.

Errors do not cascade here. Each site that the port shows is computed again by the oracle, in
float64, from the sites that the port has shown before; the first wrong operation is the only one
that looks wrong. Sites in between that the port does not show are bridged: they are computed too,
with the budget that a port may have spent on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.operations import unembed
from gpt_verify.graph.table import made_by
from gpt_verify.graph.tiles import EVERY, vocabulary_tiles
from gpt_verify.numerics import budgets
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, before_head, sites


class NotShown(Exception):
    """An input of the operation was not shown and cannot be bridged."""


class LocalOracle:
    """Expected value and budget of each site of one sequence, from what the port has shown.

    Args:
        config: sizes.
        weights: the checkpoint's tensors, in the precision that the port declares.
        precision: what the port computes in.
        tokens_T: the sequence, int[T].
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        precision: Precision,
        tokens_T: NDArray[np.integer],
    ) -> None:
        self._config = config
        self._weights = weights
        self._precision = precision
        self._tokens_T = tokens_T
        self._sites = sites(config)
        self._order = {name: i for i, name in enumerate(self._sites)}
        self._consumers: dict[str, list[str]] = {name: [] for name in self._sites}
        for site in self._sites.values():
            for name in site.inputs:
                self._consumers[name].append(site.name)
        self._shown: dict[str, Measured] = {}
        self._seen: set[str] = set()

    def show(self, name: str, value: NDArray[np.floating]) -> None:
        """The port has shown this site: later sites are judged from it."""
        by_head = made_by(self._sites[name]).by_head
        self._shown[name] = Measured(np.array(value)) if by_head else budgets.shown(value)
        self._seen.add(name)
        now = self._order[name]
        for kept in [kept for kept in self._shown if not self._needed(kept, now)]:
            del self._shown[kept]

    def keeps(self, name: str) -> bool:
        """It was shown, and a site that is still to come reads it, perhaps through hidden ones."""
        return name in self._shown

    def expected(
        self, name: str, precision: Precision | None = None, heads: slice = EVERY
    ) -> Measured:
        """The expected value of this site, with its budget; raises NotShown where that cannot be
        known.

        Args:
            heads: of scores or a pattern, only these.
        """
        return self._apply(self._sites[name], precision or self._precision, True, heads)

    def expected_logits(self, precision: Precision | None = None) -> Iterator[tuple[int, Measured]]:
        """The logits in tiles over the vocabulary: ``(first token, [T, tile])``."""
        p = precision or self._precision
        x = self._measure(before_head(self._config), p)
        head = unembed.Head(self._config, self._weights.__getitem__)
        sizes = self._config.n_vocab, self._config.n_embd
        for rows in vocabulary_tiles(len(x.value), *sizes):
            yield rows.start, head.rounding(p, x, rows)

    def _needed(self, name: str, now: int) -> bool:
        """Will a site after ``now`` read this one, itself or through sites that stay hidden?"""
        return any(
            self._order[consumer] > now
            or (consumer not in self._seen and self._needed(consumer, now))
            for consumer in self._consumers[name]
        )

    def _measure(self, name: str, p: Precision, heads: slice = EVERY) -> Measured:
        if name in self._shown:
            shown = self._shown[name]
            if made_by(self._sites[name]).by_head:
                return Measured(np.asarray(shown.value[heads], np.float64))
            return shown
        if name in self._seen:  # shown once, but too early to be the input of this operation
            raise NotShown(name)
        return self._apply(self._sites[name], p, False, heads)

    def _apply(self, site: Site, p: Precision, first: bool, heads: slice) -> Measured:
        operation = made_by(site)
        if not first and not operation.bridged:
            raise NotShown(site.name)
        return operation.budget(p, self._asked(site, p, heads))

    def _asked(self, site: Site, p: Precision, heads: slice) -> Asked:
        return Asked(
            self._config,
            self._tokens_T,
            heads,
            site,
            p,
            self._measure,
            self._weights,
            lambda name: None if name in self._shown else self._asked(self._sites[name], p, heads),
        )


@dataclass(frozen=True)
class Asked:
    """``gpt_verify.graph.operation.At``, of one site."""

    config: Config
    tokens_T: NDArray[np.integer]
    heads: slice
    site: Site
    precision: Precision
    measure: Callable[[str, Precision, slice], Measured]
    weights: DeclaredWeights
    unshown: Callable[[str], Asked | None] = lambda name: None

    def hidden(self, index: int) -> Asked | None:
        return self.unshown(self.site.inputs[index])

    def input(self, index: int, heads: slice | None = None) -> Measured:
        return self.measure(self.site.inputs[index], self.precision, heads or EVERY)

    def narrow(self, index: int) -> NDArray[np.floating]:
        return self.weights[self.site.weights[index]]

    def wide(self, index: int) -> NDArray[np.floating]:
        return self.weights.float64(self.site.weights[index])
