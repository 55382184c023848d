"""Two reports, check by check. What counts as worse is derived, and there is nothing to choose:

- a check that passed, and now fails or is not examined (or is not there any more);
- a verdict that fell, from verified over unjudged to refuted.

A score that grew and stays below its limit is shown and not counted. What was not examined before,
because the port did not show it or waived it, may stay as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpt_verify import text
from gpt_verify.errors import UsageError
from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict
from gpt_verify.report.compare.stored import as_written
from gpt_verify.shown import Printed
from gpt_verify.text import nearest, one_line

#: From the best to the worst.
_ORDER = (Verdict.VERIFIED, Verdict.UNJUDGED, Verdict.REFUTED)


@dataclass(frozen=True)
class Pair:
    """One check on both sides.

    Attributes:
        before, after: the finding on each side; None where a side does not have it.
        owed: it is of a law, and so every run has it. What is found out on the way (whether a known
            fault is in the logits, of a port that shows nothing else) is not.
    """

    before: Finding | None
    after: Finding | None
    owed: bool = True

    @property
    def finding(self) -> Finding:
        """The newer of the two, for its name and place."""
        found = self.after or self.before
        assert found is not None, "a check of a pair is on one side at least"
        return found

    @property
    def changed(self) -> bool:
        """Whether the two sides have another status."""
        return _status(self.before) is not _status(self.after)

    @property
    def worse(self) -> bool:
        """Whether it passed, and fails now, is not examined or is gone."""
        lost = self.changed and _status(self.before) is Status.PASSED
        return lost and (self.owed or self.after is not None)

    @property
    def better(self) -> bool:
        """Whether it passes now, and did not."""
        return self.changed and _status(self.after) is Status.PASSED

    @property
    def ratio(self) -> float | None:
        """The score in units of what it was; None where a side has none.

        A finding shows the statistic that is nearest to its limit. Where the two sides show another
        one each (RMS and maximum), what is compared is the shares of their limits.
        """
        if self.before is None or self.after is None:
            return None
        if self.same_limit:
            return ratio_of(self.before.score, self.after.score)
        return ratio_of(text.ratio(self.before), text.ratio(self.after))

    @property
    def same_limit(self) -> bool:
        """Whether the scores of both sides are held to one limit, or to none."""
        sides = self.before, self.after
        return len({None if side is None else side.limit for side in sides}) == 1


def _status(finding: Finding | None) -> Status | None:
    return None if finding is None else finding.status


def ratio_of(before: float | None, after: float | None) -> float | None:
    """``after / before``: NaN where one of them is, 1 where they are equal."""
    if before is None or after is None:
        return None
    if before == after:
        return 1.0
    if before == 0:
        return math.nan if math.isnan(after) else math.copysign(math.inf, after)
    return after / before


@dataclass(frozen=True)
class PortComparison:
    """One port on both sides.

    Attributes:
        before: the port in the older report.
        after: the port in the newer report; None where that does not have it.
        laws: ids of the checks that every run had when the older report was made; None where it
            does not say.
    """

    before: PortReport
    after: PortReport | None
    laws: frozenset[str] | None = None

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs in the order of the newer report; what it does not have follows."""
        ours = numbered(self.before.findings)
        theirs = {} if self.after is None else numbered(self.after.findings)
        keys = dict.fromkeys([*theirs, *ours])
        return tuple(
            Pair(ours.get(key), theirs.get(key), self.laws is None or key[0] in self.laws)
            for key in keys
        )

    @property
    def fell(self) -> bool:
        """Whether the verdict did. That of a port that is gone is told by its checks."""
        if self.after is None:
            return False
        return _ORDER.index(self.after.verdict) > _ORDER.index(self.before.verdict)

    @property
    def floors_ratio(self) -> float | None:
        """The error of the logits in units of what it was."""
        if self.after is None:
            return None
        return ratio_of(self.before.logits_floors, self.after.logits_floors)

    @property
    def worse(self) -> tuple[Pair, ...]:
        """The checks that are worse."""
        return tuple(pair for pair in self.pairs if pair.worse)

    @property
    def name(self) -> str:
        """``a``, or ``a → b`` where the two sides have other names for it."""
        before = one_line(self.before.name)
        after = before if self.after is None else one_line(self.after.name)
        return before if before == after else f"{before} → {after}"


def numbered(findings: Sequence[Finding]) -> dict[tuple[str, str | None, int], Finding]:
    """The findings by check, site, and how many of the same came before."""
    found: dict[tuple[str, str | None, int], Finding] = {}
    seen: dict[tuple[str, str | None], int] = {}
    for finding in findings:
        place = (finding.id, finding.site)
        seen[place] = seen.get(place, -1) + 1
        found[*place, seen[place]] = finding
    return found


@dataclass(frozen=True, repr=False)
class Comparison(Printed):
    """Two reports of one checkpoint and the same inputs.

    Attributes:
        before, after: the older and the newer report.
        ports: each port of the older side beside what the newer side has of it.
        names: what the two sides are called, the older one first.
        added: ports that only the newer side has.
        left_out: ports of the older side that were not asked for.
    """

    before: Report
    after: Report
    names: tuple[str, str]
    ports: tuple[PortComparison, ...]
    added: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def worse_checks(self) -> int:
        """How many checks are worse."""
        return sum(len(port.worse) for port in self.ports)

    @property
    def worse_verdicts(self) -> int:
        """How many ports have a worse verdict."""
        return sum(port.fell for port in self.ports)

    @property
    def worse(self) -> int:
        """How many checks and verdicts are worse."""
        return self.worse_checks + self.worse_verdicts

    @property
    def better(self) -> int:
        """How many checks pass now that did not."""
        return sum(pair.better for port in self.ports for pair in port.pairs)

    @property
    def exit_status(self) -> int:
        """0 where nothing is worse, 1 where something is."""
        return int(self.worse > 0)


def compare_reports(
    before: Report,
    after: Report,
    names: tuple[str, str] = ("the older report", "the newer report"),
    ports: Sequence[str] = (),
    asked: Sequence[str] | None = None,
) -> Comparison:
    """Compare two reports: what is worse, what is better, what moved.

    Args:
        before, after: the two sides.
        names: what errors call them.
        ports: one name takes that port of both sides, two take the first of the older and the
            second of the newer side; without any, ports of one name are compared.
        asked: of a newer side for which some ports alone were asked for, these: others are left
            out. None where all were.

    Raises:
        UsageError: the two cannot be compared; the line says why, and what to do.
    """
    before, after = as_written(before), as_written(after)
    for name, side in zip(names, (before, after), strict=True):
        if not any(port.findings for port in side.ports):
            raise UsageError(f"{name} has no check, and there is nothing to compare; run it again")
    require_comparable(before, after.checkpoint, after.inputs, names)
    laws = laws_of(before)
    if ports:
        first, last = _chosen(before, names[0], ports[0]), _chosen(after, names[1], ports[-1])
        return Comparison(before, after, names, (PortComparison(first, last, laws),))
    ours, theirs = by_name(before.ports), by_name(after.ports)
    if not ours.keys() & theirs.keys():
        has = " and ".join(
            f"{name} has {', '.join(one_line(port.name) for port in side.ports) or 'none'}"
            for name, side in zip(names, (before, after), strict=True)
        )
        raise UsageError(f"no port is in both: {has}; --port A --port B compares A with B")
    left_out = [k for k in ours if asked is not None and k not in theirs and k[0] not in asked]
    return Comparison(
        before,
        after,
        names,
        tuple(PortComparison(ours[k], theirs.get(k), laws) for k in ours if k not in left_out),
        tuple(name for name, n in theirs if (name, n) not in ours),
        tuple(name for name, _ in left_out),
    )


def laws_of(report: Report) -> frozenset[str] | None:
    """The ids of the checks that every run had when a report was made; None where it does not
    say."""
    made_with = report.environment.get("made_with")
    laws = made_with.get("laws") if isinstance(made_with, dict) else None
    if not isinstance(laws, list):
        return None
    return frozenset(law for law in laws if isinstance(law, str))


def by_name(ports: Sequence[PortReport]) -> dict[tuple[str, int], PortReport]:
    """The ports by name, and how many of the same name came before."""
    names = [port.name for port in ports]
    return {(name, names[:i].count(name)): ports[i] for i, name in enumerate(names)}


def _chosen(report: Report, where: str, name: str) -> PortReport:
    names = [port.name for port in report.ports]
    if name not in names:
        has = ", ".join(map(one_line, names)) or "none"
        raise UsageError(f"{where} has no port {name}{nearest(name, names)} (it has {has})")
    return report.ports[names.index(name)]


def require_comparable(
    before: Report,
    checkpoint: Mapping[str, Any],
    inputs: Mapping[str, Any],
    names: tuple[str, str],
) -> None:
    """Two runs say something of each other where they are of one model and one text.

    Args:
        before: the older side.
        checkpoint, inputs: of the newer one, of which a run that has not begun knows a part:
            what only one side has is not compared.
        names: of the older and the newer report, for the message.

    Raises:
        UsageError: they are not.
    """
    old, new = names
    if what := _other_checkpoint(before.checkpoint, checkpoint):
        raise UsageError(
            f"{old} and {new} are of different checkpoints ({what}); judge both on the same files"
        )
    if what := ", ".join(sorted(_differing(before.inputs, inputs))):
        raise UsageError(
            f"{old} and {new} ran on different inputs ({what}); repeat one as the other ran: "
            f"{one_line(before.repeat)}"
        )


def _other_checkpoint(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What two checkpoints differ in; None where they are one, wherever it lies."""
    files = {"files", "path", "format"}
    if differing := sorted(_differing(old, new, but=files)):
        return ", ".join(differing)
    theirs, ours = old.get("files"), new.get("files")
    if not isinstance(theirs, dict):
        raise UsageError("a report without the digests of its checkpoint cannot be compared")
    if not isinstance(ours, dict) or theirs == ours:
        return None
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(one_line(name) for name in sorted(names)[:3])


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], but: set[str] | None = None
) -> Iterator[str]:
    """The keys that both have, with different values."""
    return (one_line(k) for k in old if k in new and k not in (but or ()) and old[k] != new[k])
