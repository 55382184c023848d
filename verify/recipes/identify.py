"""Which recipes a port follows: every site beside every recipe, as the port shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.local import NotShown
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.recipes.agreement import Agreement, agreement, agreement_of_distances, kept_in
from gpt_verify.recipes.arithmetic import Array
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.recipes.table import recipes_of
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

#: Tokens of a vocabulary whose logits are looked at: enough elements, and a table that is not
#: widened whole.
_TOKENS = 4096
#: Sites after which a value is forgotten that nothing reads any more: as in ``graph.run``.
_KEEP = 25


@dataclass(frozen=True)
class Tried:
    """One recipe at one site, or at several."""

    recipe: Recipe
    agreement: Agreement


@dataclass(frozen=True)
class Found:
    """What was found out about a site, or about several that are alike.

    Attributes:
        sites: their names.
        kind: what they are in whatever layer.
        operation: that makes them.
        kept: the format that they are shown in.
        tried: the recipes that could be tried, the best first.
        why_not: why none could be; empty otherwise.
    """

    sites: tuple[str, ...]
    kind: str
    operation: str
    kept: str
    tried: tuple[Tried, ...] = ()
    why_not: str = ""

    @property
    def fitting(self) -> tuple[Tried, ...]:
        """Those that explain the bits of every element, with evidence. One that is the same on
        these numbers as the plain one, because its cast changes nothing, is not said."""
        fit = {t.recipe.name: t for t in self._fit() if not t.recipe.by_distances}
        if any(not t.recipe.whole for t in fit.values()):
            fit = {name: t for name, t in fit.items() if not t.recipe.whole}
        plain = {name: fit.get(t.recipe.plain) for name, t in fit.items()}
        return tuple(
            t
            for name, t in fit.items()
            if (other := plain[name]) is None or other.agreement != t.agreement
        )

    @property
    def alike(self) -> tuple[Tried, ...]:
        """Those of which the distances from right sums are the port's."""
        return tuple(t for t in self._fit() if t.recipe.by_distances)

    def same(self, other: Found) -> bool:
        """One recipe is that of both, or both are exact."""
        own, its = ({t.recipe.name for t in one._fit()} for one in (self, other))
        return self.kept == other.kept and bool(own & its or (self.exact and other.exact))

    def _fit(self) -> list[Tried]:
        return [t for t in self.tried if t.agreement.fits(len(self.tried))]

    @property
    def named(self) -> tuple[str, ...]:
        return tuple(t.recipe.name for t in self.fitting)

    @property
    def best(self) -> Tried | None:
        """The recipe whose bits leave least, whether it fits or not."""
        return next((t for t in self.tried if not t.recipe.by_distances), None)

    @property
    def exact(self) -> bool:
        """Nothing is rounded here: whatever is tried is equal, and would be by chance."""
        return bool(self.tried) and all(
            t.agreement.outside == 0 and t.agreement.chance == 1.0
            for t in self.tried
            if not t.recipe.by_distances
        )


class Identification:
    """The recipes of one port, gathered over its runs: a ``Visit`` (``gpt_verify.port``).

    Args:
        config: sizes.
        weights: the checkpoint's tensors in the format that the port declares.
        declared: that format, of half precision.
    """

    def __init__(self, config: Config, weights: DeclaredWeights, declared: Precision) -> None:
        self._config, self._weights, self._declared = config, weights, declared
        self._sites = sites(config)
        self._order = {name: i for i, name in enumerate(self._sites)}
        self._readers: dict[str, list[str]] = {name: [] for name in self._sites}
        for reader in self._sites.values():
            for name in reader.inputs:
                self._readers[name].append(reader.name)
        self._agreements: dict[str, dict[str, Agreement]] = {}
        self._kept: dict[str, Precision] = {}
        self._why_not: dict[str, str] = {}
        self._tokens_BT: NDArray[np.integer] = np.zeros((0, 0), np.int64)
        self._values: list[dict[str, Array]] = []

    def begin(self, tokens_BT: NDArray[np.integer]) -> None:
        """A run on these tokens comes next."""
        self._tokens_BT = tokens_BT
        self._values = [{} for _ in tokens_BT]

    def __call__(
        self, site: str, value: NDArray[np.floating], narrowest: str | None = None
    ) -> None:
        found = self._sites[site]
        kept = kept_in(value, self._declared)
        if self._kept.setdefault(site, kept) is not kept:
            self._kept[site] = FLOAT32
        for row, (tokens_T, values) in enumerate(zip(self._tokens_BT, self._values, strict=True)):
            got = np.array(value[row], np.float64)
            read = Read(self._config, found, tokens_T, values, self._weights, self._declared)
            with np.errstate(all="ignore"):
                self._compare(*_sampled(read, got), kept)
            if self._readers[site]:
                values[site] = got
            now = self._order[site]
            for old in [name for name in values if self._order[name] <= now - _KEEP]:
                if not any(self._order[reader] > now for reader in self._readers[old]):
                    del values[old]

    def _compare(self, read: Read, got: Array, kept: Precision) -> None:
        name, recipes = read.site.name, recipes_of(read.config, read.site)
        if not recipes:
            self._why_not[name] = f"there are no recipes of the operation {read.site.operation}"
            return
        counts = _counted(read.site, read.config, got)
        try:
            right = read.right()
        except NotShown as hidden:
            self._why_not[name] = f"its input {hidden} is not shown by the port"
            return
        if right.shape != got.shape:
            self._why_not[name] = f"it has shape {list(got.shape)}"
            return
        here = self._agreements.setdefault(name, {})
        for recipe in recipes:
            try:
                made = recipe.make(read)
            except NotShown:
                continue
            made = made.each(lambda x: np.broadcast_to(x, got.shape)[counts])
            if recipe.by_distances:
                more = agreement_of_distances(got[counts], made, right[counts], kept)
            else:
                more = agreement(got[counts], made, right[counts], kept, self._declared)
            here[recipe.name] = here.get(recipe.name, Agreement()) + more

    def found(self) -> list[Found]:
        """One for each site that was shown, in the order of computation."""
        return [self._found(site) for site in self._sites.values() if site.name in self._kept]

    def not_shown(self) -> list[str]:
        return [name for name in self._sites if name not in self._kept]

    def _found(self, site: Site) -> Found:
        kept = self._kept[site.name].name
        one = (site.name,)
        by_name = self._agreements.get(site.name, {})
        if not by_name:
            why = self._why_not.get(site.name, "no recipe could be tried")
            return Found(one, site.kind, site.operation, kept, why_not=why)
        return Found(one, site.kind, site.operation, kept, ranked(self._config, site, by_name))


def ranked(config: Config, site: Site, by_name: Mapping[str, Agreement]) -> tuple[Tried, ...]:
    """The recipes with what they leave, the best first; of equals, as the table has them."""
    tried = [Tried(r, by_name[r.name]) for r in recipes_of(config, site) if r.name in by_name]
    return tuple(sorted(tried, key=lambda t: (t.agreement.outside, -t.agreement.equal)))


def _sampled(read: Read, got: Array) -> tuple[Read, Array]:
    """Of logits over a large vocabulary some; of whatever else all."""
    size = read.config.n_vocab
    capped = read.config.keys.cap_logits is not None
    if not made_by(read.site).by_vocabulary or size <= _TOKENS or capped:
        return read, got
    tokens_V = np.sort(np.random.default_rng(size).permutation(size)[:_TOKENS]).astype(np.int64)
    return replace(read, tokens_V=tokens_V), got[:, tokens_V]


def _counted(site: Site, config: Config, got: Array) -> NDArray[np.bool_]:
    """The elements that count: of scores and patterns those that are read."""
    if not made_by(site).by_head:
        return np.ones(got.shape, np.bool_)
    assert site.layer is not None, "scores belong to a layer"
    t, s = got.shape[-2:]
    return np.broadcast_to(ops.sees((t, s), config.window(site.layer)), got.shape)


def grouped(found: Iterable[Found], config: Config) -> list[Found]:
    """The sites of each kind together, as far as they are kept alike and one recipe fits them all,
    or none fits any."""
    groups: list[list[Found]] = []
    for one in found:
        for group in groups:
            if _alike([*group, one]):
                group.append(one)
                break
        else:
            groups.append([one])
    return [_together(group, config) for group in groups]


def _alike(group: list[Found]) -> bool:
    first, *others = group
    if any((o.kind, o.kept, o.why_not) != (first.kind, first.kept, first.why_not) for o in others):
        return False
    names = [set(one.named) for one in group]
    return bool(set.intersection(*names)) or not any(names)


def _together(group: list[Found], config: Config) -> Found:
    first = group[0]
    names = tuple(name for one in group for name in one.sites)
    total: dict[str, Agreement] = {}
    for one in group:
        for tried in one.tried:
            total[tried.recipe.name] = total.get(tried.recipe.name, Agreement()) + tried.agreement
    everywhere = {t.recipe.name for t in first.tried}
    for one in group:
        everywhere &= {t.recipe.name for t in one.tried}
    kept = {name: a for name, a in total.items() if name in everywhere}
    site = sites(config)[first.sites[0]]
    return Found(
        names, first.kind, first.operation, first.kept, ranked(config, site, kept), first.why_not
    )
