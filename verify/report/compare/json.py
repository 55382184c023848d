"""The comparison for programs (docs/report.md)."""

from __future__ import annotations

import json
from typing import Any

from gpt_verify.findings import Finding, PortReport, Report
from gpt_verify.report.compare.comparison import Comparison, Pair, PortComparison
from gpt_verify.report.json import plain

#: Raised as that of the report is.
SCHEMA_VERSION = "1.1"


def _side(report: Report, name: str) -> dict[str, Any]:
    return {
        "name": plain(name),
        "verdict": report.verdict.value,
        "repeat": plain(report.repeat),
        "environment": plain(report.environment),
    }


def _check(pair: Pair) -> dict[str, Any]:
    def both(field: str) -> dict[str, Any]:
        sides: list[Finding | None] = [pair.before, pair.after]
        values = [None if side is None else plain(getattr(side, field)) for side in sides]
        return dict(zip(("before", "after"), values, strict=True))

    return {
        "id": plain(pair.finding.id),
        "site": plain(pair.finding.site),
        "worse": pair.worse,
        "status": both("status"),
        "score": both("score") | {"ratio": plain(pair.ratio)},
        "limit": both("limit"),
    }


def _of_port(port: PortReport) -> dict[str, Any]:
    return {
        "name": plain(port.name),
        "verdict": port.verdict.value,
        "dtype": plain(port.dtype),
        "device": plain(port.device),
        "error": plain(port.error),
        "first_divergence": plain(port.first_divergence),
        "explained_by": plain(port.explained_by),
        "logits_floors": plain(port.logits_floors),
    }


def _port(port: PortComparison) -> dict[str, Any]:
    after = port.after
    return {
        "before": _of_port(port.before),
        "after": None if after is None else _of_port(after),
        "verdict_fell": port.fell,
        "logits_floors_ratio": plain(port.floors_ratio),
        "checks": [_check(pair) for pair in port.pairs],
    }


def as_dict(comparison: Comparison, attribution: dict[str, Any] | None = None) -> dict[str, Any]:
    """The comparison in JSON's own types, with what makes the difference where that was asked."""
    before, after = comparison.names
    return {
        "schema_version": SCHEMA_VERSION,
        "worse": {"verdicts": comparison.worse_verdicts, "checks": comparison.worse_checks},
        "better": comparison.better,
        "before": _side(comparison.before, before),
        "after": _side(comparison.after, after),
        "ports": [_port(port) for port in comparison.ports],
        "added": plain(comparison.added),
        "not_asked_for": plain(comparison.left_out),
        "attribution": plain(attribution),
    }


def render(comparison: Comparison, attribution: dict[str, Any] | None = None) -> str:
    made = as_dict(comparison, attribution)
    return json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
