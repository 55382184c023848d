"""Laws that a port declares not to bind it, with a reason.

A waiver turns a failure into *not examined*, and is printed and counted in every report. One that
excuses nothing is an error: it would hide the day on which it begins to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpt_verify.findings import Finding, Status, Waiver, concerns
from gpt_verify.text import nearest


def waive(
    findings: Sequence[Finding], waivers: Mapping[str, str]
) -> tuple[list[Finding], tuple[Waiver, ...], str | None]:
    """Apply a port's waivers.

    Args:
        findings: of every check.
        waivers: ``law`` or ``law.part`` → reason. ``tying`` stands for all its parts.

    Returns:
        The findings with each excused failure marked as not examined; the waivers, each with how
        many failures it excused; and a line about the waivers that excuse nothing, or None. A law
        that could not be examined anyway may be waived.
    """
    waived, unused = [], []
    found = list(findings)
    for law, reason in waivers.items():
        concerned = [i for i, f in enumerate(found) if concerns(law, f.id)]
        failed = [i for i in concerned if found[i].status is Status.FAILED]
        if not failed and not any(found[i].status is Status.NOT_EXAMINED for i in concerned):
            what = "the law holds" if concerned else f"no such law{nearest(law, _names(found))}"
            unused.append(f"the waiver of {law} excuses nothing: {what}")
        for i in failed:
            waived_ = found[i].saying(before=f"waived ({reason}): ")
            found[i] = replace(waived_, status=Status.NOT_EXAMINED)
        waived.append(Waiver(law, reason, len(failed)))
    return found, tuple(waived), "; ".join(unused) or None


def _names(findings: Sequence[Finding]) -> list[str]:
    """The names of the laws, and of their parts."""
    return list(dict.fromkeys(name for f in findings for name in (f.law, f.id)))
