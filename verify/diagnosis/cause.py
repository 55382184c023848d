"""From explanations of single failures to the causes of all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from gpt_verify.explanation import UNKNOWN_DAMAGE, Candidate, Explanation
from gpt_verify.findings import Cause

#: A fault and where it was accepted → how many sites it would have changed as well, that are right.
Denied = Callable[[str, Collection[str]], int]

#: Notes of one cause at different places.
MOST = 4


def causes(
    explanations: Sequence[Explanation],
    denied: Denied = lambda fault, where: 0,
    elsewhere: Denied = lambda fault, where: 0,
) -> list[Cause]:
    """The fewest faults that explain every failure that can be explained.

    Of those that could each explain a failure, the one is taken that explains most of the others
    too, less the sites that are right and should not be if it were there; then the same for what
    is left. Where two explain exactly the same failures about equally well, the one is named that
    would change fewer right sites if it were in all layers, or else the better one, and the other
    is mentioned.
    """
    left = {
        explanation.where: [c for c in explanation.accepted if c.fault != UNKNOWN_DAMAGE]
        for explanation in explanations
    }
    left = {where: accepted for where, accepted in left.items() if accepted}
    damaged = {explanation.where for explanation in explanations if explanation.of_tensor}
    found = []
    while left:
        by_name: dict[tuple[str, ...], dict[str, Candidate]] = {}
        for where, accepted in left.items():
            for candidate in accepted:
                by_name.setdefault(candidate.faults, {})[where] = candidate
        against = {
            names: sum(denied(name, where) for name in names) for names, where in by_name.items()
        }

        best = min(
            by_name,
            key=lambda names, found=by_name, against=against: (  # type: ignore[misc]
                against[names] - len(found[names]),
                sum(elsewhere(name, found[names]) for name in names),
                _total(found[names]),
            ),
        )
        covered = by_name[best]
        same = [
            " and ".join(names)
            for names, other in by_name.items()
            if names != best and other.keys() == covered.keys() and against[names] == against[best]
        ]
        notes = dict.fromkeys(candidate.note for candidate in covered.values() if candidate.note)
        note = "; ".join(list(notes)[:MOST]) + (" …" if len(notes) > MOST else "")
        found += [
            Cause(
                fault,
                note,
                sites=tuple(where for where in covered if where not in damaged),
                tensors=tuple(where for where in covered if where in damaged),
                instead=tuple(sorted(same)),
            )
            for fault in best
        ]
        for where in covered:
            del left[where]
    return found


def _total(candidates: Mapping[str, Candidate]) -> float:
    return sum(candidate.score for candidate in candidates.values())
