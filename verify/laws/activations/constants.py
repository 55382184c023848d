"""Names the constant of a port that is another number than the reference's, by how much it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpt_verify.findings import Finding, Status
from gpt_verify.numerics.constants import named
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites


def with_constants(
    findings: Iterable[Finding], constants: Sequence[float], config: Config
) -> list[Finding]:
    """Failures of an operation in whose place a number was met that is nearly its constant.

    Args:
        findings: of a run in float64.
        constants: the numbers that the port kept in tensors of one element.
        config: sizes, which some constants depend on.
    """
    table = sites(config)
    known = [(value, *near) for value in constants if (near := named(value, config))]
    found = []
    for finding in findings:
        if finding.status is Status.FAILED and finding.site in table:
            for value, constant, error in known:
                if table[finding.site].kind in constant.kinds:
                    words = (
                        f"{value:.9g} in place of {constant.formula}, relative error {error:.2g}"
                    )
                    finding = finding.saying(after=f"; its constant is {words}")
        found.append(finding)
    return found
