"""The ledger as one HTML page."""

from __future__ import annotations

from gpt_verify.claims.run import ClaimsReport
from gpt_verify.report.claims import messages
from gpt_verify.report.page import assemble


def render(report: ClaimsReport) -> str:
    """The page, whole in one file."""
    context = {"report": report, "words": messages}
    return assemble("claims.html", context, styles=["base.css", "claims.css"], scripts=[])
