"""Layers that are run in another order than their own: which mistake sorts them so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpt_verify.findings import Cause

if TYPE_CHECKING:
    from gpt_verify.laws.activations.check import SiteComparison


def sorted_wrongly(comparisons: Mapping[str, SiteComparison]) -> list[Cause]:
    """The fault that puts the layers in the order in which they were run, if one is known."""
    for comparison in comparisons.values():
        order = comparison.order
        if order != sorted(order) and order == sorted(order, key=str):
            return [Cause("linear-layers-string-sorted", sites=tuple(comparison.late))]
    return []
