"""What the law of weights says of a port that is right, and keeps a tensor in a way unknown to it.

Where the logits are those of the checkpoint, nothing is missing. If parameters are left over that
can hold what was not found, it is in them: which of them it is was not found out, and that is what
is said. A tensor that is missing with nothing in its place stays a failure, and so does one that
was found with other values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gpt_verify.findings import END_TO_END, Finding, Status, concerns
from gpt_verify.matching.placement import Matching
from gpt_verify.port import Parameter
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table
from gpt_verify.text import listing


def with_unplaced(
    findings: Sequence[Finding], parameters: Sequence[Parameter], matching: Matching, config: Config
) -> list[Finding]:
    """The findings of weights and logits, the former not examined where that is so.

    Args:
        findings: of every check until now.
        parameters: of the port.
        matching: which of them is which tensor.
        config: of what they were matched to.
    """
    if not _in_place_of(parameters, matching, config) or not _right(findings):
        return list(findings)
    missing = {name.split(" ")[0] for name in matching.missing}
    wrong = {p.stands_for for p in matching.placements if not p.exact}
    why = (
        f"not examined, because the logits are correct and {listing(matching.surplus)} "
        f"could not be placed, which may hold {listing(matching.missing)}: "
    )
    found = []
    for finding in findings:
        known = finding.id == "weights.values" and not set(finding.tensors) <= missing - wrong
        if finding.status is Status.FAILED and concerns("weights", finding.id) and not known:
            finding = replace(finding.saying(before=why), status=Status.NOT_EXAMINED, tensors=())
        found.append(finding)
    return found


def _in_place_of(parameters: Iterable[Parameter], matching: Matching, config: Config) -> bool:
    """Whether what is left over can hold what is missing."""
    left = sum(math.prod(p.shape) for p in parameters if p.name in matching.surplus)
    table = tensor_table(config)
    gone = 0
    for name in matching.missing:
        tensor, space, _ = name.partition(" ")
        gone += table[tensor].size // (3 if space else 1) if tensor in table else 0
    return bool(matching.missing) and left >= gone


def _right(findings: Iterable[Finding]) -> bool:
    """Whether the logits were compared, and are those of the checkpoint."""
    of_logits = [finding.status for finding in findings if finding.id == END_TO_END]
    return bool(of_logits) and all(status is Status.PASSED for status in of_logits)
