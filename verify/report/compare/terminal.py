"""The comparison for a person: what is worse first, then what else moved.

No line begins with what stands in a file: where GitHub reads the log, it could be a command.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from gpt_verify.findings import Finding, PortReport, Status
from gpt_verify.report.compare.comparison import Comparison, Pair, PortComparison
from gpt_verify.report.compare.versions import versions
from gpt_verify.text import collapse_sites, count, number, one_line

_WORDS = {Status.PASSED: "passed", Status.FAILED: "failed", Status.NOT_EXAMINED: "not examined"}


def render(comparison: Comparison) -> str:
    """The whole comparison as text."""
    return "\n".join([*_lines(comparison), "", summary(comparison)]) + "\n"


def _lines(comparison: Comparison) -> Iterator[str]:
    yield " → ".join(map(one_line, comparison.names))
    changed, same = versions(comparison.before.environment, comparison.after.environment)
    for name, (before, after) in changed.items():
        yield f"changed: {name} {before} → {after}"
    if same:
        yield "the same on both sides: " + ", ".join(f"{k} {v}" for k, v in same.items())
    for port in comparison.ports:
        yield ""
        yield from _port(port)
    if comparison.added:
        yield ""
        yield f"only in the newer: {', '.join(map(one_line, comparison.added))}"
    if comparison.left_out:
        yield ""
        yield f"not asked for: {', '.join(map(one_line, comparison.left_out))}"


def _port(port: PortComparison) -> Iterator[str]:
    before, after = port.before, port.after
    if after is None:
        yield f"port {port.name}: {before.verdict.value} → not there any more"
    else:
        verdict = _moved(before.verdict.value, after.verdict.value)
        yield f"port {port.name}: {verdict}{' (worse)' if port.fell else ''}"
        if after.error is not None:
            yield f"  error: {one_line(after.error)}"
        rows = (
            ("dtype", before.dtype, after.dtype),
            ("device", before.device, after.device),
            ("weights from", before.weights_from, after.weights_from),
            ("first divergence", before.first_divergence or "none", after.first_divergence),
            ("explained by", ", ".join(before.explained_by), ", ".join(after.explained_by)),
        )
        for name, old, new in rows:
            if (old or "none") != (new or "none"):
                yield f"  {name}: {one_line(old or 'none')} → {one_line(new or 'none')}"
        if before.name != after.name:
            yield f"  {_parting(before, after)}"
        yield from _floors(port)
    yield from _changes("worse", port.worse)
    yield from _changes("better", [pair for pair in port.pairs if pair.better])
    others = [p for p in port.pairs if p.changed and not p.worse and not p.better]
    yield from _changes("changed, not counted", others)
    yield from _scores(port)


def _parting(one: PortReport, other: PortReport) -> str:
    """Where two ports first differ, and which of them agrees with the reference."""
    names = one_line(one.name), one_line(other.name)
    sites = one.first_divergence, other.first_divergence
    if sites[0] == sites[1]:
        return (
            f"both depart from the reference at {sites[0]}"
            if sites[0]
            else ("no operation of either departs from the reference by itself")
        )
    if None not in sites:
        return f"{names[0]} departs from the reference at {sites[0]}, {names[1]} at {sites[1]}"
    at, right = (sites[1], names[0]) if sites[0] is None else (sites[0], names[1])
    return f"they first differ at {at}, where {right} agrees with the reference"


def _floors(port: PortComparison) -> Iterator[str]:
    assert port.after is not None, "a port that is gone has no logits"
    old, new = port.before.logits_floors, port.after.logits_floors
    if old is None and new is None:
        return
    words = [("none" if x is None else number(x)) for x in (old, new)]
    ratio = "" if port.floors_ratio is None else f" ({_times(port.floors_ratio)})"
    yield f"  logits: {_moved(*words)} floors{ratio}"


def _changes(title: str, pairs: Iterable[Pair]) -> Iterator[str]:
    """Those of one check that changed in one way stand together, with what the first one says."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for pair in pairs:
        how = f"{_state(pair.before)} → {_state(pair.after)}"
        groups.setdefault((pair.finding.id, how), []).append(pair.finding)
    if groups:
        yield f"  {title}:"
    for (check, how), found in groups.items():
        sites = collapse_sites(one_line(f.site) for f in found if f.site)
        yield f"    - {one_line(check)}{f' at {sites}' if sites else ''}: {how}"
        if not how.endswith((" passed", " not there")):
            yield f"      e.g. {one_line(found[0].message)}"


def _state(finding: Finding | None) -> str:
    return "not there" if finding is None else _WORDS[finding.status]


def _scores(port: PortComparison) -> Iterator[str]:
    """The smallest and the largest ratio of each check, and where that is."""
    rated: dict[str, list[tuple[float, Pair]]] = {}
    for pair in port.pairs:
        if (ratio := pair.ratio) is not None:
            rated.setdefault(pair.finding.id, []).append((ratio, pair))
    if not rated:
        return
    yield "  scores, newer ÷ older:"
    for check, pairs in rated.items():
        moved = [(ratio, pair) for ratio, pair in pairs if ratio != 1]
        if not moved:
            yield f"    - {one_line(check)}: {count(len(pairs), 'score')}, the same"
            continue
        ends = [_end(min, moved)] if len(moved) == 1 else [_end(min, moved), _end(max, moved)]
        same = len(pairs) - len(moved)
        yield f"    - {one_line(check)}: {' to '.join(ends)}" + (
            f"; {same} the same" if same else ""
        )


def _end(pick: Callable[..., tuple[float, Pair]], moved: list[tuple[float, Pair]]) -> str:
    # A score that is no number counts as grown beyond all others.
    ratio, pair = pick(moved, key=lambda item: math.inf if math.isnan(item[0]) else item[0])
    assert pair.before is not None and pair.after is not None, "a ratio has two sides"
    scores = [number(f.score) for f in (pair.before, pair.after) if f.score is not None]
    limits = [number(f.limit) for f in (pair.before, pair.after) if f.limit is not None]
    if pair.same_limit:
        shown = " → ".join(scores) + "".join(f", limit {limit}" for limit in limits[:1])
    else:
        (before, after), (old, new) = scores, limits
        shown = f"score {before} of limit {old} → {after} of {new}"
    at = f" at {one_line(pair.after.site)}" if pair.after.site else ""
    return f"{_times(ratio)}{at} ({shown})"


def _times(ratio: float) -> str:
    return "no number" if math.isnan(ratio) else f"{number(ratio)} ×"


def _moved(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def summary(comparison: Comparison) -> str:
    """The result of a comparison, in one line."""
    checks = sum(len(port.pairs) for port in comparison.ports)
    of = f"of {count(len(comparison.ports), 'port')}, {count(checks, 'check')}"
    better = f"; {count(comparison.better, 'check')} better" if comparison.better else ""
    if not comparison.worse:
        return f"nothing is worse {of}{better}"
    worse = [
        count(n, noun)
        for n, noun in ((comparison.worse_verdicts, "verdict"), (comparison.worse_checks, "check"))
        if n
    ]
    return f"worse: {' and '.join(worse)} {of}{better}"
