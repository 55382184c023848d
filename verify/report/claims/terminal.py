"""The ledger in a terminal: a line for each claim, or the answers where a few were asked for."""

from __future__ import annotations

import textwrap

from gpt_verify.claims.claim import Decided
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.report.claims.messages import (
    answer,
    checkpoint,
    complaint,
    sources,
    state,
    summary,
    verdict,
)

SIGN = {"passed": "✓", "failed": "✗", "not_examined": "?"}


def render(report: ClaimsReport, *, full: bool, width: int = 100) -> str:
    """Args: full: the answers too; width: in characters."""
    show = _answer if full else _line
    width_of_id = max((len(d.claim.id) for d in report.claims), default=0)
    blocks = [show(decided, width, width_of_id) for decided in report.claims]
    joint = "\n\n" if full else "\n"
    more = (
        "" if full else "\nThe answers: gpt-verify claims ID …, or --markdown, --html, --json OUT"
    )
    return f"{checkpoint(report)}\n\n{joint.join(blocks)}\n\n{summary(report)}{more}\n"


def _line(decided: Decided, width: int, width_of_id: int) -> str:
    start = f"{SIGN[state(decided)]} {decided.claim.id:<{width_of_id}}  {verdict(decided):<22}  "
    text = textwrap.shorten(decided.claim.statement, max(20, width - len(start)), placeholder=" …")
    lines = [start + text]
    if complaint(decided):
        lines.append(f"  {complaint(decided)}")
    return "\n".join(lines)


def _answer(decided: Decided, width: int, width_of_id: int) -> str:
    claim = decided.claim
    asked = ", ".join(decided.measured.asked) if decided.measured else ""
    lines = [
        f"{SIGN[state(decided)]} {claim.id}: {verdict(decided)}",
        *_filled(f"“{claim.statement}”", width),
        "",
        *_filled(answer(decided), width),
        "",
        *([f"  asked:  {asked}"] if asked else []),
        f"  said:   {sources(decided)}",
        f"  test:   {decided.test}",
        f"  repeat: {decided.repeat}",
    ]
    return "\n".join(lines)


def _filled(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")
