"""What depends on something that it must not depend on, where nothing else is known of it.

A law that finds it says where and by how much; no fault of the catalogue does that.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpt_verify.findings import END_TO_END, Cause, Finding, Status
from gpt_verify.text import number

NAME = "depends-on"
SUMMARY = "makes of a sequence what depends on something else"
#: Of the error of the logits, in noise floors, a dependence is at least this part.
PART = 0.5
#: Check → what the logits depend on.
_ON = {
    "causality.bits": "later tokens",
    "batch": "other rows of the batch",
    "batch.sizes": "how many rows the batch has",
    "calls": "earlier calls",
}


def depends(findings: Iterable[Finding]) -> list[Cause]:
    """A cause for each such failure that its law does not name.

    Where the logits are wrong in any case, what rounds coarsely rounds otherwise beside other rows:
    a dependence that is far smaller than the error says nothing.
    """
    found = list(findings)
    wrong = max((f.score or 0.0 for f in found if f.id == END_TO_END), default=0.0)
    failed = [f for f in found if f.id in _ON and f.status is Status.FAILED and not f.named]
    failed = [f for f in failed if f.score is None or f.score >= PART * wrong]
    return [Cause(NAME, _ON[f.id] + _by(f), laws=(f.id,)) for f in failed]


def _by(finding: Finding) -> str:
    """Which tokens, where the law says so, and how much."""
    sight = finding.details.get("sight")
    words = f": {sight}" if sight else ""
    return words if finding.score is None else f"{words}, by {number(finding.score)} noise floors"
