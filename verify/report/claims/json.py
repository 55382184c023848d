"""The ledger for programs (docs/ledger.md)."""

from __future__ import annotations

import json
from typing import Any

from gpt_verify.claims.claim import Decided
from gpt_verify.claims.debates import Debate
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.report.claims.messages import complaint, settled
from gpt_verify.report.json import plain

#: ``major.minor``: a key that is added raises the minor number, any other change the major one.
SCHEMA_VERSION = "1.1"
VERDICTS = {0: "as expected", 1: "contradicted", 2: "unjudged"}


def claim_as_dict(decided: Decided) -> dict[str, Any]:
    claim, measured = decided.claim, decided.measured
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": [
            {"author": s.author, "title": s.title, "link": s.link or None, "said": s.said}
            for s in claim.sources
        ],
        "kind": claim.kind.value,
        "verdict": decided.verdict.value if decided.verdict else None,
        "expected": claim.expected.value,
        "measured": None if measured is None else plain(dict(measured.numbers)),
        "holds": None if measured is None else measured.holds,
        "asserted": decided.asserted,
        "evidence": {
            "function": decided.evidence,
            "test": decided.test,
            "asked": list(measured.asked) if measured else [],
        },
        "answer": plain(decided.answer),
        "proof": claim.proof or None,
        "criterion": claim.criterion or None,
        "complaint": plain(complaint(decided)) or None,
        "repeat": plain(decided.repeat),
    }


def debate_as_dict(debate: Debate, report: ClaimsReport) -> dict[str, Any]:
    return {
        "id": debate.id,
        "question": debate.question,
        "settled": not debate.doubts(report.claims),
        "answer": list(settled(debate, report)),
        "rests_on": list(debate.rests_on),
        "snippet": debate.snippet,
    }


def as_dict(report: ClaimsReport) -> dict[str, Any]:
    """The report in JSON's own types."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": VERDICTS[report.exit_status],
        "repeat": plain(report.repeat),
        "checkpoint": plain(report.checkpoint),
        "environment": plain(report.environment),
        "debates": [debate_as_dict(debate, report) for debate in report.debates],
        "claims": [claim_as_dict(decided) for decided in report.claims],
    }


def render(report: ClaimsReport) -> str:
    return json.dumps(as_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
