"""Layers that are run in another order than their own: which order, and which mistake makes it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from gpt_verify.findings import Cause
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.laws.activations.check import SiteComparison


NAME = "layers-order"
SUMMARY = "runs its layers in another order"
#: Layers that are named.
MOST = 12


def sorted_wrongly(comparisons: Mapping[str, SiteComparison], config: Config) -> list[Cause]:
    """The fault that puts the layers in the order in which they were run, or that order."""
    for comparison in comparisons.values():
        order, right = comparison.order, sorted(comparison.order)
        if order == right:
            continue
        places = (*comparison.late, *misled(comparison, config))
        if order == sorted(order, key=str):
            return [Cause("linear-layers-string-sorted", sites=places)]
        more = " …" if len(order) > MOST else ""
        first = " ".join(map(str, order[:MOST]))
        return [Cause(NAME, f"layers in the order {first}{more}", sites=places)]
    return []


def misled(comparison: SiteComparison, config: Config) -> list[str]:
    """What reads the layer before its own, where another one was run before it: it is right of
    what it reads."""
    order = comparison.order
    moved: set[int | None] = {at for before, at in pairwise((-1, *order)) if at != before + 1}
    if order and order[-1] != config.n_layer - 1:
        moved.add(None)  # the norm before the head
    table = sites(config)
    return [
        site.name
        for site in table.values()
        if site.layer in moved and any(table[i].layer != site.layer for i in site.inputs)
    ]
