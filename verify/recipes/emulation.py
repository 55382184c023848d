"""Two ports, run again with any of their operations exchanged: in the reference, with the recipes
that were found.

A port of which all recipes are known can be run again on other numbers than its own. What a recipe
leaves open, as the order of a sum, is not known there; the most literal engine is taken. Where an
operation reads what a port has read, row by row, bit by bit, it makes what that port has shown. So
either port is run again to the last bit, and between the two lie engines that nobody has built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.call import Array, Call
from gpt_verify.graph.run import right, run
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.precision import PRECISIONS, Precision
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.recipes.identify import Found
from gpt_verify.recipes.pairs import how_alike
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

#: The place that stands for what both ports' common recipes leave open.
OPEN = ""


@dataclass(frozen=True)
class Engine:
    """One port, as far as it can be run again.

    Attributes:
        shown: site → what it showed of one sequence.
        found: site → which recipes it was found to follow.
        rounded: site → by how much it is off what the reference makes of the port's own numbers.
            Where no recipe is known, this is added in other runs as well.
    """

    shown: Mapping[str, Array]
    found: Mapping[str, Found]
    rounded: Mapping[str, Array]

    def recipes(self, site: str) -> list[Recipe]:
        """Those that leave nothing outside, by preference."""
        found = self.found[site]
        fit = [t.recipe for t in found.tried if t.agreement.outside == 0]
        fit = [recipe for recipe in fit if not recipe.by_distances]
        first = [r for r in fit if r.name in found.named]
        return first + [r for r in fit if r not in first]


class Between:
    """Two ports and what lies between them.

    Args:
        config: sizes.
        weights: the checkpoint's tensors in the format that both declare.
        tokens_T: what they ran on.
        a, b: the ports.
        declared: their format.
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        tokens_T: NDArray[np.integer],
        a: Engine,
        b: Engine,
        declared: Precision,
    ) -> None:
        self._config, self._weights, self._tokens_T = config, weights, tokens_T
        self._a, self._b, self._declared = a, b, declared
        self._sites = sites(config)
        self._place_of: dict[str, str | None] = {}

    @cached_property
    def places(self) -> list[str]:
        """What can be exchanged: kinds of sites that the two do not compute alike, in the order of
        computation; at the end ``OPEN``, where equal numbers were seen to become others by what
        common recipes leave open."""
        found = dict.fromkeys(p for name in self._sites if (p := self._place(name)) is not None)
        apart = any(differ for _, differ in self.compared.values())
        return [*found, *[OPEN] * apart]

    @cached_property
    def compared(self) -> dict[str, tuple[int, int]]:
        """Kind of site that both compute alike → elements that they made of equal numbers, and how
        many of these differ: by the order of a sum or a library's function."""
        found: dict[str, tuple[int, int]] = {}
        for site in self._sites.values():
            if self._place(site.name) is not None or not self._both_show(site.name):
                continue
            rows = self._known_rows(site, self._a.shown, self._b, (self._a, self._b))
            one, other = (engine.shown[site.name] for engine in (self._a, self._b))
            counts = self._counts(site, one.shape) & self._by_row(site, rows)
            elements, differ = found.get(site.kind, (0, 0))
            apart = int(np.sum((one != other) & counts))
            found[site.kind] = elements + int(counts.sum()), differ + apart
        return found

    def logits(self, of_a: Collection[str]) -> Array:
        """What B becomes where these places are as A has them, [T, V]."""
        shown: dict[str, Array] = {}

        def emulate(call: Call) -> Array:
            engines = self._engines(call.site.name, of_a)
            if any(call.site.name not in engine.shown for engine in engines):
                return right(call)  # hidden: nothing that follows sees it
            made = self._emulated(call, shown, engines, of_a)
            shown[call.site.name] = made
            return made

        lookup, overrides = Widened(self._weights).__getitem__, dict.fromkeys(self._sites, emulate)
        made = run(lookup, self._config, self._tokens_T, overrides, keep=None)
        return next(value for name, value in made if name == "logits")

    def _emulated(
        self,
        call: Call,
        shown: Mapping[str, Array],
        engines: Sequence[Engine],
        of_a: Collection[str],
    ) -> Array:
        site = call.site
        tables = engines
        if len(engines) == 2 and OPEN in self.places:
            tables = [self._a if OPEN in of_a else self._b]
        known = [self._known_rows(site, shown, engine, engines) for engine in tables]
        if np.logical_or.reduce(known).all():
            made = np.zeros_like(tables[0].shown[site.name])
        else:
            with np.errstate(all="ignore"):
                made = self._made(call, shown, engines)
        for rows, engine in zip(known, tables, strict=True):
            own = engine.shown[site.name]
            counts = self._counts(site, own.shape) & self._by_row(site, rows)
            made = np.where(counts, own, made)
        return made

    def _made(self, call: Call, shown: Mapping[str, Array], engines: Sequence[Engine]) -> Array:
        """By the recipe that all of these follow; without one, by the reference and what the port
        rounds."""
        site, engine = call.site, engines[0]
        kept = PRECISIONS[engine.found[site.name].kept]
        known = [{r.name for r in other.recipes(site.name)} for other in engines[1:]]
        common = [r for r in engine.recipes(site.name) if all(r.name in names for names in known)]
        if not common:
            return np.asarray(kept.round(right(call) + engine.rounded[site.name]), np.float64)
        own = Read(self._config, site, self._tokens_T, dict(shown), self._weights, self._declared)
        made = common[0].make(own).store(kept).mid
        return np.broadcast_to(made, engine.shown[site.name].shape)

    def _engines(self, name: str, of_a: Collection[str]) -> tuple[Engine, ...]:
        """Whose operation this is: of one of the two, or of both."""
        place = self._place(name)
        if place is None:
            return self._a, self._b
        return (self._a,) if place in of_a else (self._b,)

    def _place(self, name: str) -> str | None:
        """The place that a site belongs to; None where both compute it alike. What one of them
        hides belongs to what reads it."""
        if name not in self._place_of:
            owner = self._owner(name)
            alike = not self._both_show(owner) or (
                how_alike(self._a.found[owner], self._b.found[owner]) == "alike"
            )
            self._place_of[name] = None if alike else self._sites[owner].kind
        return self._place_of[name]

    def _owner(self, name: str) -> str:
        while not self._both_show(name):
            readers = [s.name for s in self._sites.values() if name in s.inputs]
            if not readers:
                break
            name = readers[0]
        return name

    def _both_show(self, name: str) -> bool:
        return name in self._a.shown and name in self._b.shown

    def _known_rows(
        self,
        site: Site,
        values: Mapping[str, Array],
        engine: Engine,
        visible: Iterable[Engine],
    ) -> NDArray[np.bool_]:
        """At which positions the operation reads what this port has read, bool[T].

        Args:
            site: what the operation makes.
            values: what it reads.
            engine: the port.
            visible: the ports that all show what the operation reads.
        """
        rows = np.ones(len(self._tokens_T), np.bool_)
        reads, hidden = self._reads(site, list(visible))
        for name in reads:
            if name not in values or name not in engine.shown:
                return np.zeros_like(rows)
            one, other = values[name], engine.shown[name]
            apart = (one != other) & self._counts(self._sites[name], one.shape)
            axes = (0, 2) if apart.ndim == 3 else (1,)
            rows &= ~apart.any(axis=axes)
        heads = made_by(site).by_head
        if any(made_by(self._sites[name]).by_head != heads for name in [*reads, *hidden]):
            rows = np.logical_and.accumulate(rows)  # it reads earlier positions as well
        return rows

    def _reads(self, site: Site, engines: Sequence[Engine]) -> tuple[list[str], list[str]]:
        """The sites that it is made of and that these show, and those in between."""
        reads: list[str] = []
        hidden: list[str] = []
        for name in site.inputs:
            if all(name in engine.shown for engine in engines):
                reads.append(name)
            else:
                more = self._reads(self._sites[name], engines)
                reads += more[0]
                hidden += [name, *more[1]]
        return reads, hidden

    def _counts(self, site: Site, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """The elements that count: of scores and patterns those that are read."""
        if not made_by(site).by_head:
            return np.ones(shape, np.bool_)
        assert site.layer is not None, "scores belong to a layer"
        t, s = shape[-2:]
        return np.broadcast_to(ops.sees((t, s), self._config.window(site.layer)), shape)

    def _by_row(self, site: Site, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """These positions, in the shape of what the operation makes."""
        found: NDArray[np.bool_] = rows[None, :, None] if made_by(site).by_head else rows[:, None]
        return found
