"""The verdict as a badge: what shields.io's endpoint reads (docs/ci.md)."""

from __future__ import annotations

import json

from gpt_verify.findings import Report, Verdict
from gpt_verify.text import tally

_COLOUR = {Verdict.VERIFIED: "brightgreen", Verdict.REFUTED: "red", Verdict.UNJUDGED: "lightgrey"}


def render(report: Report) -> str:
    badge = {
        "schemaVersion": 1,
        "label": "gpt-verify",
        "message": f"{report.verdict.value}: {tally(report)}",
        "color": _COLOUR[report.verdict],
    }
    return json.dumps(badge) + "\n"
