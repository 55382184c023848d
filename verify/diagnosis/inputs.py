"""Whether a fault is there on other inputs than the one on which it was found.

A mask that is made for the first input and never grows is missing in longer ones, and there the
port does what a port without a mask does. It is another mistake all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.explanation import Candidate, Explanation
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.catalogue import CATALOGUE

NAME = "on-some-inputs"
SUMMARY = "has a fault on some inputs only"

#: Inputs on which it is looked for.
MOST = 3

Tokens = NDArray[np.integer]
#: An input, sites and faults → what came of trying these faults at these sites.
Try = Callable[[Tokens, Collection[str], Collection[str]], Mapping[str, Explanation]]


@dataclass
class _Seen:
    """Numbers of tokens with the fault, and without it."""

    at: str
    having: list[int]
    lacking: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        where = ""
        if max(self.lacking) < min(self.having):
            where = "longer "
        elif max(self.having) < min(self.lacking):
            where = "shorter "
        having, lacking = (_listed(n) for n in (self.having, self.lacking))
        return f"on {where}inputs: of {having} tokens, and not of {lacking}"


def only_on_some(
    found: Mapping[str, Explanation],
    lengths: Mapping[str, int],
    given: Sequence[Tokens],
    longest: int,
    tried: Try,
) -> dict[str, Explanation]:
    """The explanations that change, because a fault is not there on an input that would show it.

    Args:
        found: site → its explanation.
        lengths: site → how many tokens the input had on which it was explained.
        given: the inputs, [B, T], on which the sites were judged.
        longest: of more tokens none is tried.
        tried: tries faults on an input, in its first row.
    """
    seen: dict[str, _Seen] = {}
    for site, explanation in found.items():
        best = explanation.best
        # A fault that rounds coarsely may round to where the correct number lies.
        if best is None or best.beside or not _predicts(best.fault):
            continue
        seen.setdefault(best.fault, _Seen(site, [lengths[site]]))
    if not seen:
        return {}
    for tokens in _others(given, {n for s in seen.values() for n in s.having}, longest):
        made = tried(tokens, {s.at for s in seen.values()}, seen)
        for fault, where in seen.items():
            there = _is_there(made.get(where.at), fault)
            if there is not None:
                (where.having if there else where.lacking).append(tokens.shape[1])
    changed = {}
    for site, explanation in found.items():
        best = explanation.best
        if best is not None and best.fault in seen and seen[best.fault].lacking:
            said = f"{best.fault} {seen[best.fault]}"
            changed[site] = replace(explanation, accepted=(Candidate(NAME, best.score, said),))
    return changed


def _predicts(fault: str) -> bool:
    known = CATALOGUE.get(fault)
    return known is not None and bool(known.sites.operations) and not known.sites.quantising


def _others(given: Sequence[Tokens], known: set[int], longest: int) -> list[Tokens]:
    """The shortest of other lengths, the longest, and one between; one token shows little."""
    by_length = {tokens.shape[1]: tokens for tokens in given}
    lengths = sorted(n for n in by_length.keys() - known if 1 < n <= longest)
    at = np.unique(np.linspace(0, len(lengths) - 1, MOST).round().astype(int)) if lengths else ()
    return [by_length[lengths[i]] for i in at]


def _is_there(explanation: Explanation | None, fault: str) -> bool | None:
    """None where this input does not tell."""
    if explanation is None:
        return None
    scores = [c.score for c in (*explanation.accepted, *explanation.nearest) if c.fault == fault]
    if not scores:
        return None
    if explanation.before <= explanation.limit:
        return False if scores[0] > LIMIT_FLOORS else None
    return True if scores[0] <= explanation.limit else None


def _listed(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(set(numbers))))
