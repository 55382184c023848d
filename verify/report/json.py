"""The report for programs. Its contract is ``schema.json`` beside this file (docs/report.md).

A number that is not finite is written as the string ``"inf"``, ``"-inf"`` or ``"nan"``: JSON has no
such numbers, ``null`` already says that there is none, and a consumer that compares a string with
a limit fails loudly instead of taking a port that printed NaN for a good one.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

from gpt_verify.findings import Finding, PortReport, Report, Status

#: ``major.minor``: a key that is added raises the minor number, any other change the major one.
SCHEMA_VERSION = "1.5"


def plain(value: Any) -> Any:
    """A value in JSON's own types.

    Raises:
        TypeError: something that has no honest form in JSON.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        # Half a surrogate pair, from a path or from what a port said, has no form in UTF-8.
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars, without importing NumPy
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot stand in a JSON report: {value!r}")


def finding_as_dict(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "status": finding.status.value,
        "site": finding.site,
        "score": plain(finding.score),
        "limit": plain(finding.limit),
        "message": plain(finding.message),
        "named": [] if finding.named is None else list(finding.named.faults),
        "tensors": list(finding.tensors),
        "details": plain(finding.details),
    }


def _counts(*ports: PortReport) -> dict[str, int]:
    found = [finding.status for port in ports for finding in port.findings]
    return {status.value: found.count(status) for status in Status}


def port_as_dict(port: PortReport) -> dict[str, Any]:
    return {
        "name": plain(port.name),
        "verdict": port.verdict.value,
        "dtype": port.dtype,
        "device": port.device,
        "weights_from": plain(str(port.weights_from)),
        "error": plain(port.error),
        "unmet": [plain(line) for line in port.unmet],
        "counts": _counts(port),
        "first_divergence": port.first_divergence,
        "explained_by": list(port.explained_by),
        "waivers": [
            {"law": plain(w.law), "reason": plain(w.reason), "failures": w.failures}
            for w in port.waived
        ],
        "remarks": [plain(remark) for remark in port.remarks],
        "logits_floors": plain(port.logits_floors),
        "seconds": plain(port.seconds),
        "mapping": {plain(name): plain(str(place)) for name, place in port.mapping.items()},
        "checks": [finding_as_dict(finding) for finding in port.findings],
    }


def as_dict(report: Report) -> dict[str, Any]:
    """The report in JSON's own types, in the order in which a reader wants it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": report.verdict.value,
        "counts": _counts(*report.ports),
        "repeat": plain(report.repeat),
        "checkpoint": plain(report.checkpoint),
        "inputs": plain(report.inputs),
        "environment": plain(report.environment),
        "ports": [port_as_dict(port) for port in report.ports],
    }


def render(report: Report) -> str:
    return json.dumps(as_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what ``--json`` writes of a report."""
    text = resources.files("gpt_verify.report").joinpath("schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
