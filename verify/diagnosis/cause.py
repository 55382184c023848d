"""From explanations of single failures to the causes of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verify.diagnosis.explanation import Candidate, Explanation
from verify.findings import Cause


def causes(explanations: Sequence[Explanation]) -> list[Cause]:
    """The fewest faults that explain every failure that can be explained.

    Of those that could each explain a failure, the one that explains most of the others too is
    taken; then the same for what is left. Where two explain exactly the same failures about
    equally well, the better one is named and the other is mentioned.
    """
    left = {explanation.where: explanation for explanation in explanations if explanation.best}
    found = []
    while left:
        by_name: dict[str, dict[str, Candidate]] = {}
        for where, explanation in left.items():
            for candidate in explanation.accepted:
                by_name.setdefault(candidate.fault, {})[where] = candidate
        best = min(by_name, key=lambda name: (-len(by_name[name]), _total(by_name[name])))
        covered = by_name[best]
        same = [
            name
            for name, other in by_name.items()
            if name != best and other.keys() == covered.keys()
        ]
        notes = dict.fromkeys(candidate.note for candidate in covered.values() if candidate.note)
        found.append(Cause(best, ", ".join(notes), tuple(covered), tuple(sorted(same))))
        for where in covered:
            del left[where]
    return found


def _total(candidates: Mapping[str, Candidate]) -> float:
    return sum(candidate.score for candidate in candidates.values())
