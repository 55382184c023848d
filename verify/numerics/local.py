"""Local comparison: what an operation should have made of the port's own input.

Errors do not cascade here. Each site that the port shows is computed again by the oracle, in
float64, from the sites that the port has shown before; the first wrong operation is the only one
that looks wrong. Sites in between that the port does not show are bridged: they are computed too,
with the budget that a port may have spent on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics import budgets
from gpt_verify.numerics.budgets import EVERY, Measured
from gpt_verify.numerics.parallel import by_twos
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, before_head, sites

#: Tokens × vocabulary elements handled at a time: 2 MB in float64, which a core's cache holds.
TILE_ELEMENTS = 1 << 18
#: Elements of scores or of a pattern handled at a time: 8 MB in float64. Larger arrays are taken
#: from the system and given back each time, which costs more than what is computed with them.
HEAD_ELEMENTS = 1 << 20
#: Elements of the rows of a table that are widened at a time.
TABLE_ELEMENTS = 1 << 20
#: Operations whose result is [H, T, S].
BY_HEAD = ("scores", "pattern")


class NotShown(Exception):
    """An input of the operation was not shown and cannot be bridged."""


class LocalOracle:
    """Expected value and budget of each site of one sequence, from what the port has shown."""

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
        by_head = self._sites[name].operation in BY_HEAD
        self._shown[name] = Measured(np.array(value)) if by_head else budgets.shown(value)
        self._seen.add(name)
        now = self._order[name]
        for kept in [kept for kept in self._shown if not self._needed(kept, now)]:
            del self._shown[kept]

    def expected(
        self, name: str, precision: Precision | None = None, heads: slice = EVERY
    ) -> Measured:
        """What this site should be; raises NotShown where that cannot be known.

        Args:
            heads: of scores or a pattern, only these.
        """
        return self._apply(self._sites[name], precision or self._precision, True, heads)

    def expected_logits(self, precision: Precision | None = None) -> Iterator[tuple[int, Measured]]:
        """The logits in tiles over the vocabulary: ``(first token, [T, tile])``."""
        p = precision or self._precision
        x = self._measure(before_head(self._config), p)
        head_VD = self._weights[self._config.head]
        for rows in vocabulary_tiles(len(x.value), *head_VD.shape):
            yield rows.start, budgets.unembed(p, x, head_VD[rows])

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
            if self._sites[name].operation in BY_HEAD:
                return Measured(np.asarray(shown.value[heads], np.float64))
            return shown
        if name in self._seen:  # shown once, but too early to be the input of this operation
            raise NotShown(name)
        return self._apply(self._sites[name], p, False, heads)

    def _apply(self, site: Site, p: Precision, first: bool, heads: slice) -> Measured:
        if not first and site.operation not in BRIDGED:
            raise NotShown(site.name)
        operation = budgets.OPERATIONS[site.operation]
        if site.operation == "embed":
            return operation(p, self._tokens_T, self._weights["wte"], self._weights["wpe"])
        if site.operation == "mix":
            return self._mix(site, p)
        inputs = [self._measure(name, p, heads) for name in site.inputs]
        extra: list[object] = [self._weights.float64(name) for name in site.weights]
        if site.operation == "scores":
            extra = [self._config.n_head, heads]
        elif site.operation == "linear":
            extra.append(self._weights[site.weights[0]])
        return operation(p, *inputs, *extra)

    def _mix(self, site: Site, p: Precision) -> Measured:
        """Some heads after the other, side by side in the end."""
        pattern, qkv = site.inputs
        values, n_head = self._measure(qkv, p), self._config.n_head

        def of(heads: slice) -> Measured:
            return budgets.mix(p, self._measure(pattern, p, heads), values, n_head, heads)

        parts = by_twos([partial(of, heads) for heads in head_tiles(n_head, len(self._tokens_T))])
        budget = [part.budget for part in parts if part.budget is not None]
        return Measured(
            np.concatenate([part.value for part in parts], axis=-1), np.concatenate(budget, axis=-1)
        )


#: Operations through which a hidden site is computed rather than given up. The others are products
#: with a matrix: where their result is hidden, what follows is not judged here, because an error in
#: them would be charged to the next operation.
BRIDGED = ("embed", "scores", "pattern", "mix", "gelu", "add", "layer_norm")


def vocabulary_tiles(tokens: int, n_vocab: int, width: int = 1) -> Iterator[slice]:
    """Slices of the vocabulary, each small enough for a tile of logits, and for its rows of the
    table, which are so wide."""
    step = max(1, min(TILE_ELEMENTS // max(tokens, 1), TABLE_ELEMENTS // width))
    for start in range(0, n_vocab, step):
        yield slice(start, min(start + step, n_vocab))


def head_tiles(n_head: int, tokens: int) -> list[slice]:
    """Slices of the heads, each with as many patterns as are handled at a time."""
    step = max(1, HEAD_ELEMENTS // tokens**2)
    return [slice(first, min(first + step, n_head)) for first in range(0, n_head, step)]
