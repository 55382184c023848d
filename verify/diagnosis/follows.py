"""Which failures of a port follow from another one: one mistake is one failure with consequences.

This orders what is shown and decides no verdict. What is said to follow fails all the same, and is
judged anew when that which it follows from is mended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpt_verify.diagnosis.left_over import FOLLOW, FOLLOW_TENSORS, goes_with
from gpt_verify.diagnosis.proof import OWN
from gpt_verify.findings import Cause, Finding, PortReport, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.text import layer_and_kind

#: A check and its site.
Key = tuple[str, str | None]


@dataclass(frozen=True)
class _Head:
    """A failure that follows from no other.

    Attributes:
        finding: the failure.
        begins: how early in the forward pass; None of what changes nothing there.
        fault: the fault that explains it, or None.
        tensors: whether what is wrong is a tensor.
    """

    finding: Finding
    begins: int | None
    fault: str | None = None
    tensors: bool = False


def follows(port: PortReport, order: Mapping[str, int]) -> dict[Key, Finding]:
    """Each failed check that follows from another one → that one, which follows from none.

    Args:
        port: what was found about it.
        order: site → its number in order of computation.
    """
    failed = [f for f in port.findings if f.status is Status.FAILED]
    after: dict[Key, Finding] = {}
    heads: list[_Head] = []
    left = failed
    for cause in port.causes:
        same = [f for f in left if _is_of(cause, f)]
        if same:
            heads.append(_head(same, order, cause))
            after |= {_key(f): heads[-1].finding for f in same[1:]}
            left = [f for f in left if f not in same]
    for same in _unexplained(left):
        heads.append(_head(same, order))
        after |= {_key(f): heads[-1].finding for f in same[1:]}
        left = [f for f in left if f not in same]
    if all(head.begins is None for head in heads):
        compared = [f for f in left if _compares(f, tensors=False)]
        first = min(compared, key=lambda f: order.get(f.site or "", len(order)), default=None)
        if first is not None:
            heads.append(_head([first], order))
            left = [f for f in left if f is not first]
    for finding in left:
        head = next((head for head in heads if _comes_of(head, finding, order)), None)
        if head is not None:
            after[_key(finding)] = head.finding
    return after


def _key(finding: Finding) -> Key:
    return finding.id, finding.site


def _is_of(cause: Cause, finding: Finding) -> bool:
    """Whether a cause explains this failure by itself."""
    if finding.id in cause.laws:
        fault = CATALOGUE.get(cause.fault)
        return finding.fault in (None, cause.fault, *(fault.entails if fault else ()))
    if finding.id in OWN:
        return finding.site in cause.sites
    return finding.id == "weights.values" and not set(cause.tensors).isdisjoint(finding.tensors)


def _unexplained(failed: list[Finding]) -> list[list[Finding]]:
    """What is wrong by itself and was not explained. The same operation in several layers, or in
    two precisions, is one: it is the same code."""
    groups: dict[str, list[Finding]] = {}
    for finding in failed:
        if finding.id in OWN and finding.site:
            groups.setdefault(layer_and_kind(finding.site)[1], []).append(finding)
        elif finding.id == "weights.values":
            groups.setdefault(" ".join(finding.tensors) or str(finding.site), []).append(finding)
    return list(groups.values())


def _head(same: list[Finding], order: Mapping[str, int], cause: Cause | None = None) -> _Head:
    first = same[0]
    fault = CATALOGUE.get(cause.fault) if cause else None
    tensors = any(f.tensors for f in same) and first.id == "weights.values"
    if cause is not None and not (cause.sites or cause.tensors):
        forward = fault is not None and fault.predicted
        return _Head(first, -1 if forward else None, cause.fault, tensors)
    begins = min(order.get(f.site or "", -1) for f in same)
    return _Head(first, begins, cause.fault if cause else None, tensors)


def _compares(finding: Finding, tensors: bool) -> bool:
    """Whether a check compares with the correct reference from one end to the other."""
    follow = FOLLOW | FOLLOW_TENSORS if tensors else FOLLOW
    return finding.law in follow or finding.id in follow


def _comes_of(head: _Head, finding: Finding, order: Mapping[str, int]) -> bool:
    if head.fault in CATALOGUE and goes_with(head.fault, finding):
        return True
    if head.begins is None or not _compares(finding, head.tensors):
        return False
    # A derivative is wrong before the place as well.
    if finding.law not in ("activations", "lens") or finding.site is None:
        return True
    return order.get(finding.site, -1) >= head.begins
