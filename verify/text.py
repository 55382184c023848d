"""Small pieces of wording that every report shares."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict

_LAYER_SITE = re.compile(r"h\.(\d+)\.(.+)")


def one_line(text: object) -> str:
    """Text as one printable line; what a port says may hold newlines and escape codes."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def listing(names: Iterable[object], most: int = 3) -> str:
    """The first of them, and how many more there are: ``a, b, c and 4 more``."""
    found = [str(name) for name in names]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def weights_words(weights_from: str) -> str:
    """The origin of a port's weights, in a few words."""
    said = {
        "checkpoint": "converted from the checkpoint under test",
        "port": "the port's own",
        "both": "some from the checkpoint under test, and others of the port's own",
    }
    return said.get(weights_from, f"the port's own, from {one_line(weights_from)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean x?`` where one of the known words is much like this one, else nothing."""
    import difflib

    found = difflib.get_close_matches(one_line(word)[:200], list(known), n=1)
    return f"; did you mean {one_line(found[0])}?" if found else ""


def nearest_path(path: Path) -> str:
    """The same of a file or directory that is not there: what lies beside it under such a name."""
    import difflib

    try:
        beside = sorted(entry.name for entry in islice(path.parent.iterdir(), 10_000))
    except (OSError, ValueError):
        return ""
    found = difflib.get_close_matches(path.name[:200], beside, n=1)
    return f"; did you mean {one_line(path.parent / found[0])}?" if found else ""


def label(finding: Finding) -> str:
    """``activations.local[h.0.mlp.act]``: a check and its place, as one word."""
    return f"{finding.id}[{finding.site}]" if finding.site else finding.id


def element(name: str, index: Sequence[int], *, numbered: bool = False) -> str:
    """One element of a site, its axes named: ``h.0.ln_1[row 0, position 5, channel 3]``.

    Args:
        name: of the site.
        index: its indices, or the first of them.
        numbered: the first index is the number of the input.
    """
    axes: tuple[str, ...] = ("row", "position", "token" if name == "logits" else "channel")
    if len(index) - numbered > len(axes):
        axes = ("row", "head", "target", "source")
    named = zip(("input", *axes) if numbered else axes, index, strict=False)
    return f"{name}[{', '.join(f'{axis} {at}' for axis, at in named)}]"


def number(value: float) -> str:
    """Three significant digits, without an exponent where that reads well."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.001 <= abs(value) < 100_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"


def ratio(finding: Finding) -> float | None:
    """Score over limit, above 1 exactly where the score is too large; None without numbers."""
    if finding.score is None or finding.limit is None:
        return None
    if math.isnan(finding.score):
        return math.inf
    if finding.limit == 0:
        return math.inf if finding.score > 0 else 0.0
    return finding.score / finding.limit


def worst(findings: Iterable[Finding], part: str) -> Finding | None:
    """The finding with the largest ratio among ``law.part``, or None where none has numbers."""
    rated = [
        (value, finding)
        for finding in findings
        if finding.part == part and (value := ratio(finding)) is not None
    ]
    return max(rated, key=lambda pair: pair[0])[1] if rated else None


def first_failure(report: PortReport) -> Finding | None:
    """The failure to show first: at the first divergence if there is one, else the first of all."""
    failed = [f for f in report.findings if f.status is Status.FAILED]
    at_site = [f for f in failed if f.site == report.first_divergence and f.site is not None]
    local = [f for f in at_site if f.part == "local"]
    return next(iter(local or at_site or failed), None)


def failures_by_check(findings: Iterable[Finding]) -> str:
    """``activations.cascaded (38), logits (1)``."""
    counts = Counter(f.id for f in findings if f.status is Status.FAILED)
    return ", ".join(f"{check} ({count})" for check, count in counts.items())


def ranges(numbers: Sequence[int]) -> str:
    """``0…11``, ``0…3,7``: consecutive numbers drawn together."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(str(a) if a == b else f"{a}…{b}" for a, b in runs)


def layer_and_kind(site: str) -> tuple[int | None, str]:
    """``h.3.mlp.act`` is (3, "mlp.act"); a site outside the blocks has no layer."""
    match = _LAYER_SITE.fullmatch(site)
    return (int(match[1]), match[2]) if match else (None, site)


def collapse_sites(sites: Iterable[str]) -> str:
    """Names of many sites in few words: ``h.0…11.attn.scores, ln_f``. No site is left out."""
    layers: dict[str, list[int]] = {}
    for site in sites:
        layer, kind = layer_and_kind(site)
        name = site if layer is None else f"h.*.{kind}"
        layers.setdefault(name, []).extend([] if layer is None else [layer])
    return ", ".join(
        name.replace("*", ranges(numbers), 1) if numbers else name
        for name, numbers in layers.items()
    )


def was_compared(report: PortReport) -> bool:
    """Whether anything at all was looked at."""
    return any(finding.status is not Status.NOT_EXAMINED for finding in report.findings)


def not_examined(report: PortReport) -> list[tuple[str, str, str]]:
    """What a port did not show, as ``(checks, sites, reason)``: each check and site is named.

    Checks that were not examined at the same sites for the same reason stand together.
    """
    error = None if report.error is None else one_line(report.error)
    return unseen(report.findings, error)


def unseen(findings: Iterable[Finding], error: str | None = None) -> list[tuple[str, str, str]]:
    """The same of some findings; ``error`` is what broke the port, which is said elsewhere."""
    sites: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.status is Status.NOT_EXAMINED:
            why = one_line(finding.message)
            if why == error:
                why = "not reached"
            at = sites.setdefault((finding.id, why), [])
            if finding.site:
                at.append(finding.site)
    checks: dict[tuple[str, str], list[str]] = {}
    for (check, why), at in sites.items():
        checks.setdefault((collapse_sites(at), why), []).append(check)
    return [(", ".join(names), at, why) for (at, why), names in checks.items()]


def tally(report: Report) -> str:
    """How much was examined, and how much was not: ``8 checks; 245 not examined``."""
    n = {status: 0 for status in Status}
    for port in report.ports:
        for finding in port.findings:
            n[finding.status] += 1
    passed = count(n[Status.PASSED], "check")
    if report.verdict is Verdict.REFUTED:
        seen = f"{count(n[Status.FAILED], 'check')} failed, {n[Status.PASSED]} passed"
    else:
        seen = passed + " passed" * (report.verdict is Verdict.UNJUDGED)
    ports = "" if len(report.ports) == 1 else f"{count(len(report.ports), 'port')}, "
    waivers = sum(len(port.waived) for port in report.ports)
    waived = f", {count(waivers, 'waiver')}" if waivers else ""
    return f"{ports}{seen}; {n[Status.NOT_EXAMINED]} not examined{waived}"


def headline(report: Report) -> str:
    """The first line of every report: the verdict, and how much of the port it is about."""
    return f"{report.verdict.value}: {tally(report)}"


def count(n: int, noun: str) -> str:
    """``1 check``, ``2 checks``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def typed_path(text: str) -> Path:
    """A directory as a user wrote it: ``./gpt2`` must not become ``gpt2``, which may be a model of
    the hub."""
    path = Path(text)
    return path.absolute() if text.startswith(".") and not os.path.lexists(path) else path
