"""What is wrong with a port beside the faults that were named."""

from __future__ import annotations

from collections.abc import Mapping

from gpt_verify.diagnosis.proof import OWN, Proof, is_quantising
from gpt_verify.findings import Finding, PortReport, Status
from gpt_verify.laws.catalogue import CATALOGUE

#: Laws that compare with the correct reference, and so fail wherever something is wrong before.
FOLLOW = frozenset(
    (
        "logits",
        "activations.cascaded",
        "gradient",
        "lens",
        "loss.reference",
        "precision",
        "symmetry",
        "causality",
        "graph.meta",
    )
)
#: The same where a fault rounds coarsely: two ways to the same logits differ by a bit before it,
#: and by a step after it.
FOLLOW_QUANTISING = frozenset(
    (
        "cache",
        "batch",
        "calls",
        "lengths",
        "positions",
        "device",
        "determinism",
        "generation",
        "history",
        "resizing",
        "training",
    )
)
#: The same where what is wrong is a tensor.
FOLLOW_TENSORS = frozenset(("weights.count", "weights.accounted", "tying.value"))
#: Law of a fault of tying or of derivatives → laws that fail with it. A mistake in the backward
#: pass is named only where it explains the derivative of every tensor, so whatever else is made of
#: derivatives follows; a head of its own is found by each law of tying in its own way.
GO_WITH: Mapping[str, frozenset[str]] = {
    "gradient": frozenset(("tying.gradient", "causality.gradient", "symmetry.gradient")),
    "tying.value": frozenset(("tying.storage", "tying.graph", "tying.gradient")),
    "tying.storage": frozenset(("tying.graph", "tying.gradient", "tying.persistence")),
    "tying.gradient": frozenset(("tying.graph",)),
}
#: Faults of one end of wte → where the law of the gradient sees them.
_END: Mapping[str, str] = {
    "head-detached": "logits",
    "tying-head-hidden": "logits",
    "tying-head-part-hidden": "logits",
    "tying-head-scaled": "logits",
    "tying-lookup-hidden": "embed",
    "tying-lookup-detached": "embed",
    "tying-lookup-scaled": "embed",
    "tying-padding-row": "embed",
    "tying-by-frequency": "embed",
}


def left_over(report: PortReport, proof: Proof | None) -> list[Finding]:
    """Failures that the named faults do not account for.

    What only follows from a fault (logits, sites since the tokens, whatever else is compared with
    the correct reference) is accounted for where the port follows the reference with the faults.
    """
    named = {law for cause in report.causes for law in cause.laws}
    holds = proof is not None and proof.holds
    follow = FOLLOW
    if proof is not None and any(injected.tensors for injected in proof.injected):
        follow |= FOLLOW_TENSORS
    if proof is not None and any(is_quantising(injected) for injected in proof.injected):
        follow |= FOLLOW_QUANTISING
    explained = {e.where for e in report.explanations if e.best is not None}
    causes = [cause.fault for cause in report.causes if cause.fault in CATALOGUE]
    left = []
    for finding in report.findings:
        if finding.status is not Status.FAILED:
            continue
        if finding.id in named or (finding.site in explained and finding.id in OWN):
            continue
        if finding.id == "weights.values" and explained.issuperset(finding.tensors):
            continue
        if holds and (finding.law in follow or finding.id in follow):
            continue
        if any(goes_with(fault, finding) for fault in causes):
            continue
        left.append(finding)
    return left


def goes_with(fault: str, finding: Finding) -> bool:
    """A failure that such a fault brings with it."""
    if finding.id == "gradient":
        return finding.site == _END.get(fault) and finding.tensors == ("wte",)
    if finding.id == "resizing":  # it names a head that was left as it was, and tells of a lookup
        end = finding.details.get("end")
        return end is not None and end == _END.get(fault)
    law = CATALOGUE[fault].law or ""
    return finding.details.get("follows") == law or finding.id in GO_WITH.get(law, ())
