"""A diagnosis for a person, and for programs (docs/report.md)."""

from __future__ import annotations

import json as json_module
from typing import Any

from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.explanation import Candidate, Explanation
from gpt_verify.findings import Cause, Finding, Verdict
from gpt_verify.judging.diagnose import Diagnosed
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.report.json import finding_as_dict, plain
from gpt_verify.text import listing, number, one_line

SCHEMA_VERSION = "1.1"
#: Failures that are listed; the rest is counted.
_MOST = 5


def statement(d: Diagnosed) -> str:
    """The result of a diagnosis, in one sentence."""
    name = one_line(d.port.name)
    if d.port.verdict is Verdict.UNJUDGED:
        return f"{name}: could not be judged: {one_line(d.port.error or 'nothing was compared')}"
    if d.port.verdict is Verdict.VERIFIED:
        return f"{name}: nothing to explain: this port is GPT-2 to within its floor"
    laws = [cause.fault for cause in d.port.causes if cause.fault not in _injected(d)]
    what = " and ".join([*map(str, d.injected), *laws])
    if d.complete:
        rest = "this port is GPT-2 to within its floor" if d.injected else "nothing else is wrong"
        return f"{name}: apart from {what}, {rest}"
    if d.no_proof is not None and not d.unexplained:
        return f"{name}: explained by {what}; whether anything else is wrong was not shown"
    if what:
        return f"{name}: explained in part, by {what}; something else is wrong"
    return f"{name}: unexplained"


def _injected(d: Diagnosed) -> set[str]:
    return {injected.fault for injected in d.injected}


def terminal(d: Diagnosed) -> str:
    """The statement, each cause with its evidence, the proof, and what is left over."""
    lines = [statement(d)]
    for cause in d.port.causes:
        lines += ["", *_cause(d, cause)]
    if d.proof is not None:
        lines += ["", _proof(d)]
    elif d.no_proof is not None:
        lines += ["", f"the reference with these faults was not compared: {one_line(d.no_proof)}"]
    if d.unexplained:
        lines += ["", "Unexplained:"]
        lines += [f"  {_unexplained(e)}" for e in d.unexplained[:_MOST]]
        lines += _more(len(d.unexplained))
    elif not d.port.causes and (near := _nearest_in_logits(d)):
        lines += ["", "Unexplained:", f"  logits: {near}"]
    if d.left:
        lines += ["", "Left over:"]
        lines += [f"  {_place(f)}: {one_line(f.message)}" for f in d.left[:_MOST]]
        lines += _more(len(d.left))
    return "\n".join([*lines, "", f"repeat: {d.repeat}"]) + "\n"


def _more(n: int) -> list[str]:
    return [f"  and {n - _MOST} more"] if n > _MOST else []


def _cause(d: Diagnosed, cause: Cause) -> list[str]:
    fault = CATALOGUE.get(cause.fault)
    note = f" ({one_line(cause.note)})" if cause.note else ""
    lines = [f"{cause.fault}{note}"]
    if fault is not None:
        lines.append(f"  the port {fault.summary}")
        if fault.seen:
            lines.append(f"  seen in: {fault.seen}")
    elif cause.fault in FORMS:
        lines.append(f"  the port {FORMS[cause.fault]}")
    lines.append(f"  explains: {listing(cause.where, _MOST)}")
    scores = [e for e in d.port.explanations if e.where in cause.where and e.best]
    if scores:
        worst = max(scores, key=lambda e: e.before)
        assert worst.best is not None
        left = number(worst.best.score)
        lines.append(f"  at {worst.where} the score goes from {number(worst.before)} to {left}")
    if cause.instead:
        lines.append(f"  or, which explains the same: {', '.join(cause.instead)}")
    return lines


def _proof(d: Diagnosed) -> str:
    proof = d.proof
    assert proof is not None
    verb = "agrees" if proof.holds else "does not agree"
    return (
        f"the port {verb} with a reference that has {' and '.join(map(str, proof.injected))}: "
        f"of {len(proof.floors)} sites the worst is {proof.worst}, "
        f"{number(proof.floors[proof.worst])} noise floors apart (limit {number(proof.limit)}; "
        f"{proof.precision})"
    )


def _unexplained(e: Explanation) -> str:
    near = ", ".join(f"{c} leaves {number(c.score)}" for c in e.near)
    return f"{e.where}: score {number(e.before)}; nearest: {near or 'no known fault is near'}"


def _nearest_in_logits(d: Diagnosed) -> str:
    """What the matched filter says of a port that shows nothing else."""
    for finding in d.port.findings:
        if "nearest" in finding.details:
            near = ", ".join(
                f"{m['fault']} (coefficient {number(m['coefficient'])})"
                for m in finding.details["nearest"]
            )
            floors = finding.details["floors"]["after"]
            return f"{number(floors)} noise floors are left; nearest: {near or 'none'}"
    return ""


def _place(finding: Finding) -> str:
    return f"{finding.id} at {finding.site}" if finding.site else finding.id


def as_dict(d: Diagnosed) -> dict[str, Any]:
    """The same in JSON's own types."""
    proof = d.proof
    found: dict[str, Any] = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "verdict": d.port.verdict.value,
            "statement": statement(d),
            "complete": d.complete,
            "repeat": d.repeat,
            "port": {
                "name": d.port.name,
                "dtype": d.port.dtype,
                "device": d.port.device,
                "error": d.port.error,
                "first_divergence": d.port.first_divergence,
                "explained_by": d.port.explained_by,
                "logits_floors": d.port.logits_floors,
            },
            "causes": [_cause_as_dict(cause) for cause in d.port.causes],
            "planted": [
                {
                    "fault": injected.fault,
                    "layers": injected.layers,
                    "sites": list(injected.sites),
                    "tensors": injected.tensors,
                }
                for injected in d.injected
            ],
            "explanations": [_explanation(e) for e in d.port.explanations],
            "proof": None
            if proof is None
            else {
                "holds": proof.holds,
                "worst": {"site": proof.worst, "floors": proof.floors[proof.worst]},
                "limit": proof.limit,
                "precision": proof.precision,
                "floors": proof.floors,
            },
            "no_proof": d.no_proof,
        }
    )
    found["left_over"] = [finding_as_dict(finding) for finding in d.left]
    return found


def _cause_as_dict(cause: Cause) -> dict[str, Any]:
    fault = CATALOGUE.get(cause.fault)
    return {
        "fault": cause.fault,
        "summary": FORMS.get(cause.fault) if fault is None else fault.summary,
        "note": cause.note,
        "where": cause.where,
        "instead": cause.instead,
    }


def _explanation(e: Explanation) -> dict[str, Any]:
    def tried(candidate: Candidate) -> dict[str, Any]:
        return {"fault": candidate.fault, "note": candidate.note, "leaves": candidate.score}

    return {
        "where": e.where,
        "before": e.before,
        "limit": e.limit,
        "accepted": [tried(candidate) for candidate in e.accepted],
        "nearest": [tried(candidate) for candidate in e.nearest],
    }


def json(d: Diagnosed) -> str:
    return json_module.dumps(as_dict(d), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
