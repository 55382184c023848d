"""The report for CI servers: JUnit XML, one suite for each port, one case for each check."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter

from gpt_verify.findings import Finding, PortReport, Report, Status
from gpt_verify.text import headline, label, number

#: XML 1.0 has no form, escaped or not, for these; a port's message may hold any of them.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _case(suite: ET.Element, port: str, name: str, seconds: float) -> ET.Element:
    time = f"{seconds:.3f}"
    return ET.SubElement(suite, "testcase", classname=_clean(port), name=_clean(name), time=time)


def _add(suite: ET.Element, port: str, finding: Finding) -> None:
    case = _case(suite, port, label(finding), finding.seconds)
    message = _clean(finding.message)
    if finding.status is Status.NOT_EXAMINED:
        ET.SubElement(case, "skipped", message=message)
    elif finding.status is Status.FAILED:
        failure = ET.SubElement(case, "failure", message=message, type=_clean(finding.id))
        if finding.score is not None and finding.limit is not None:
            failure.text = f"score {number(finding.score)}, limit {number(finding.limit)}\n"


def _suite(root: ET.Element, port: PortReport, repeat: str) -> Counter[str]:
    counts = Counter(finding.status.value for finding in port.findings)
    # A suite of no case reads as success, so a port without findings becomes an error.
    error = port.error or "; ".join(port.unmet) or None
    if error is None and not port.findings:
        error = "nothing was compared"
    totals = Counter(
        tests=len(port.findings) + (error is not None),
        failures=counts[Status.FAILED.value],
        errors=int(error is not None),
        skipped=counts[Status.NOT_EXAMINED.value],
    )
    suite = ET.SubElement(
        root,
        "testsuite",
        {key: str(totals[key]) for key in ("tests", "failures", "errors", "skipped")},
        name=_clean(port.name),
        time=f"{port.seconds:.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for key, value in {
        "verdict": port.verdict.value,
        "dtype": port.dtype,
        "device": port.device,
        "weights_from": str(port.weights_from),
        "repeat": repeat,
    }.items():
        ET.SubElement(properties, "property", name=key, value=_clean(value))
    for finding in port.findings:
        _add(suite, port.name, finding)
    if error is not None:
        spent = sum(finding.seconds for finding in port.findings)
        case = _case(suite, port.name, "run", max(0.0, port.seconds - spent))
        ET.SubElement(case, "error", message=_clean(error))
    return totals


def render(report: Report) -> str:
    root = ET.Element("testsuites", name=f"gpt-verify: {headline(report)}")
    totals: Counter[str] = Counter()
    for port in report.ports:
        totals.update(_suite(root, port, report.repeat))
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(totals[key]))
    root.set("time", f"{sum(port.seconds for port in report.ports):.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "unicode") + "\n"
