"""What a check says: measured, worded, and not yet judged by anybody else.

A check returns findings; it raises nothing and prints nothing. The verdict is drawn from them in
one place, and each report shows them in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_EXAMINED = "not_examined"


class Verdict(StrEnum):
    VERIFIED = "verified"
    REFUTED = "refuted"
    UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Finding:
    """One check at one place.

    Attributes:
        id: the check, ``law`` or ``law.part``: ``weights.values``, ``activations.local``.
        status: passed, failed, or not examined (and then the message says what was not shown).
        site: where, or None where the check has no place.
        score: the number that was compared with ``limit``; None where there is no number.
        limit: the largest score that a correct port reaches.
        message: one line; for a failure ``what[index] = got, should be expected ± budget``.
        details: further numbers for the JSON report (scores by position, head, channel …).
    """

    id: str
    status: Status
    message: str
    site: str | None = None
    score: float | None = None
    limit: float | None = None
    details: dict[str, Any] = field(default_factory=dict, compare=False)


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Refuted by one failure; verified only if something passed; otherwise unjudged."""
    statuses = {finding.status for finding in findings}
    if Status.FAILED in statuses:
        return Verdict.REFUTED
    return Verdict.VERIFIED if Status.PASSED in statuses else Verdict.UNJUDGED
