"""The failures as SARIF 2.1.0 (OASIS, 2020): code scanning shows them beside the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from gpt_verify import __version__
from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict
from gpt_verify.laws.table import PARTS
from gpt_verify.report.place import place
from gpt_verify.text import headline, label, one_line

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
#: The rule of a port that was not judged.
_UNJUDGED = "unjudged"
#: Of one run code scanning takes so many.
_MOST = 5000


def render(report: Report) -> str:
    results = [result for port in report.ports for result in _of_port(port)]
    rules = [_rule(part.id, part.holds) for part in PARTS]
    rules.append(_rule(_UNJUDGED, "the port can be judged, and what is required is examined"))
    known = {rule["id"] for rule in rules}
    rules += [
        _rule(name) for name in dict.fromkeys(r["ruleId"] for r in results) if name not in known
    ]
    driver = {"name": "gpt-verify", "semanticVersion": __version__, "rules": rules}
    run = {
        "tool": {"driver": driver},
        "results": results[:_MOST],
        "properties": {"verdict": report.verdict.value, "headline": headline(report)},
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(name: str, holds: str = "") -> dict[str, Any]:
    return {"id": name, "shortDescription": {"text": one_line(holds) or name}}


def _of_port(port: PortReport) -> Iterator[dict[str, Any]]:
    if port.verdict is Verdict.UNJUDGED:
        why = port.error or "; ".join(port.unmet) or "its logits were not compared"
        yield _result(port, _UNJUDGED, why, _UNJUDGED)
    for finding in port.findings:
        if finding.status is Status.FAILED:
            yield _of_finding(port, finding)


def _of_finding(port: PortReport, finding: Finding) -> dict[str, Any]:
    at = f"{finding.site}: " if finding.site else ""
    return _result(port, finding.id, f"{at}{one_line(finding.message)}", label(finding))


def _result(port: PortReport, rule: str, message: str, what: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": rule,
        "level": "error",
        "message": {"text": f"{one_line(port.name)}: {one_line(message)}"},
        # The same failure of a later run is the same alert.
        "partialFingerprints": {"gptVerify/v1": f"{one_line(port.name)}::{one_line(what)}"},
    }
    found = place(port.name)
    if found is not None:
        where: dict[str, Any] = {"artifactLocation": {"uri": quote(found.file)}}
        where["region"] = {"startLine": found.line or 1}
        result["locations"] = [{"physicalLocation": where}]
    return result
