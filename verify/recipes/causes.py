"""What causes the difference between two ports: the places that they compute otherwise.

Either port can be run again, and with any of these places exchanged (``emulation``). The effect of
a place is then what follows of it, up to the log-probabilities: also that numbers are rounded
otherwise ever after. Where each of several places would make all of the difference by itself, no
order of exchanging them is the right one. So the share of a place is its mean over the orders
(Shapley 1953), of what it moves along the difference: all shares sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from gpt_verify.recipes.emulation import OPEN, Between
from gpt_verify.reference.loss import log_softmax

#: So many places are exchanged in every order; more of them from the first to the last and back.
EVERY_ORDER = 4


@dataclass(frozen=True)
class Cause:
    """What one place does.

    Attributes:
        kind: ``mlp.act``, of all layers; ``""`` for what common recipes leave open.
        share: of the difference of log-probabilities.
        alone: how large a difference it makes by itself, relative to the whole (root mean squares):
            B with this place as A has it, against B.
        without: the same of B with every other place as A has it, against A: what is left where
            this one place is not exchanged.
    """

    kind: str
    share: float
    alone: float
    without: float


@dataclass(frozen=True)
class Causes:
    """The difference between two ports on the same tokens, by its causes.

    Attributes:
        causes: in the order of computation.
        compared: kind of site that both compute alike → how many elements both made of equal
            numbers, and in how many of them these differ.
        runs: how many engines were run.
    """

    causes: tuple[Cause, ...]
    compared: Mapping[str, tuple[int, int]]
    runs: int

    @property
    def unseen(self) -> list[str]:
        """Kinds of sites of which nothing is known: they never read equal numbers."""
        return [kind for kind, (elements, _) in self.compared.items() if not elements]


@dataclass(frozen=True)
class _Run:
    """An engine between the two: how far along the difference it lies, counted from B, and its
    distance from either, all relative to the whole difference."""

    along: float
    from_b: float
    from_a: float


def causes(between: Between) -> Causes:
    """Account for the difference between two ports."""
    places = between.places
    every, none = frozenset(places), frozenset[str]()
    log_a, log_b = (np.asarray(log_softmax(between.logits(of_a))) for of_a in (every, none))
    square = float(np.sum((log_a - log_b) ** 2))
    if not square:
        return Causes((), between.compared, 2)
    known = {every: _Run(1.0, 1.0, 0.0), none: _Run(0.0, 0.0, 1.0)}

    def measured(of_a: frozenset[str]) -> _Run:
        if of_a not in known:
            log_p = np.asarray(log_softmax(between.logits(of_a)))
            from_a, from_b = (float(np.sum((log_p - end) ** 2)) for end in (log_a, log_b))
            along = float(np.sum((log_p - log_b) * (log_a - log_b))) / square
            known[of_a] = _Run(along, (from_b / square) ** 0.5, (from_a / square) ** 0.5)
        return known[of_a]

    shares = _shares(places, lambda of_a: measured(of_a).along)
    found = tuple(
        Cause(
            place,
            shares[place],
            measured(frozenset([place])).from_b,
            measured(every - {place}).from_a,
        )
        for place in places
    )
    return Causes(found, between.compared, len(known))


def _shares(places: Sequence[str], worth: Callable[[frozenset[str]], float]) -> dict[str, float]:
    """The mean of what each adds, over the orders in which they come."""
    orders = list(_orders(places))
    found = dict.fromkeys(places, 0.0)
    for order in orders:
        before: frozenset[str] = frozenset()
        for place in order:
            after = before | {place}
            found[place] += (worth(after) - worth(before)) / len(orders)
            before = after
    return found


def _orders(places: Collection[str]) -> Iterable[Sequence[str]]:
    if len(places) <= EVERY_ORDER:
        return permutations(places)
    order = list(places)
    return order, order[::-1]


def told(found: Causes, untold: Collection[str]) -> float:
    """The share of what the two compute otherwise as their recipes say, and of nothing else."""
    return sum(c.share for c in found.causes if c.kind != OPEN and c.kind not in untold)
