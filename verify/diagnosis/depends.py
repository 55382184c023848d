"""What depends on something that it must not depend on, where nothing else is known of it.

A law that finds it says where and by how much; no fault of the catalogue does that.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpt_verify.findings import Cause, Finding, Status
from gpt_verify.text import number

NAME = "depends-on"
SUMMARY = "makes of a sequence what depends on something else"
#: Check → what the logits depend on.
_ON = {
    "causality.bits": "later tokens",
    "batch": "other rows of the batch",
    "batch.sizes": "how many rows the batch has",
    "calls": "earlier calls",
}


def depends(findings: Iterable[Finding]) -> list[Cause]:
    """A cause for each such failure that its law does not name."""
    failed = [f for f in findings if f.id in _ON and f.status is Status.FAILED and not f.named]
    return [Cause(NAME, _ON[f.id] + _by(f), laws=(f.id,)) for f in failed]


def _by(finding: Finding) -> str:
    """Which tokens, where the law says so, and how much."""
    sight = finding.details.get("sight")
    words = f": {sight}" if sight else ""
    return words if finding.score is None else f"{words}, by {number(finding.score)} noise floors"
