"""Findings drawn together by law: how many, with what result, and which one says most.

Nothing here knows which laws there are. A finding says to which law it belongs; laws and checks
appear in the order in which they were found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from gpt_verify.findings import Finding, Status
from gpt_verify.text import ratio


@dataclass(frozen=True)
class Numbered:
    """A finding and its place among those of its port, by which the page refers to it."""

    index: int
    finding: Finding

    @property
    def ratio(self) -> float | None:
        return ratio(self.finding)


@dataclass(frozen=True)
class Check:
    """All findings of one id."""

    id: str
    findings: tuple[Numbered, ...]

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of findings by status."""
        return Counter(item.finding.status.value for item in self.findings)

    @property
    def status(self) -> str:
        return _status(self.counts)

    @cached_property
    def telling(self) -> Numbered:
        """The finding to show for all: nearest its limit among those that decide the status."""
        decisive = [n for n in self.findings if n.finding.status.value == self.status]
        return max(decisive, key=lambda n: -1.0 if n.ratio is None else n.ratio)

    @property
    def elements(self) -> int | None:
        """How many numbers were compared, where the check says so."""
        counts = [n.finding.details.get("elements", {}) for n in self.findings]
        known = [c["count"] for c in counts if isinstance(c, dict) and "count" in c]
        return sum(known) if known else None


@dataclass(frozen=True)
class Law:
    """All checks of one law."""

    name: str
    checks: tuple[Check, ...]


def _status(statuses: Iterable[str]) -> str:
    """Failed where one failed, else passed where one passed, else what they all are."""
    seen = list(statuses)
    for status in (Status.FAILED.value, Status.PASSED.value):
        if status in seen:
            return status
    return seen[0]


def by_law(findings: Sequence[Finding]) -> list[Law]:
    """Findings of one port, grouped."""
    laws: dict[str, dict[str, list[Numbered]]] = {}
    for index, finding in enumerate(findings):
        checks = laws.setdefault(finding.law, {})
        checks.setdefault(finding.id, []).append(Numbered(index, finding))
    return [
        Law(name, tuple(Check(id, tuple(items)) for id, items in checks.items()))
        for name, checks in laws.items()
    ]


@dataclass(frozen=True)
class Statistic:
    """One of the numbers by which a site was judged."""

    name: str
    score: float
    limit: float
    at: int | None


def statistics(finding: Finding) -> list[Statistic]:
    """What ``details`` says of scores and limits; other details are for programs alone."""
    found = []
    for name, value in finding.details.items():
        if isinstance(value, dict) and {"score", "limit"} <= value.keys():
            score, limit = float(value["score"]), float(value["limit"])
            found.append(Statistic(name, score, limit, value.get("at")))
    return found
