"""Dropout that is left on: named by the law that saw it draw, and by the sites that are wrong.

What is drawn at random cannot be predicted, so no operation is computed with it and compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from gpt_verify.findings import Cause, Finding, Status
from gpt_verify.sites import Site

_LAW = "determinism.mode"
#: Where a dropout shows first → which it is. What is dropped on its way into the stream is seen in
#: the sum, or in the norm after it where the port does not show the sum.
_BY_KIND = {
    "embed": "embeddings-dropout",
    "attn.pattern": "attention-dropout",
    "attn.mix": "attention-dropout",
    "resid_mid": "residual-dropout",
    "ln_2": "residual-dropout",
    "resid_post": "residual-dropout",
    "ln_1": "residual-dropout",
    "ln_f": "residual-dropout",
}


def dropouts(
    findings: Sequence[Finding], explained: Collection[str], table: Mapping[str, Site]
) -> list[Cause]:
    """The dropouts that are on, each with the sites that it makes wrong by themselves. None where
    the law knows why: a port that is left in training mode has one fault, wherever it drops.

    Args:
        findings: of the whole run.
        explained: sites for which another cause is known.
        table: every site of the model.
    """
    seen = [f.named for f in findings if f.id == _LAW and f.status is Status.FAILED and f.named]
    among = {fault for named in seen if named.fault is None for fault in named.faults}
    if not among:
        return []
    # What is dropped of the embeddings shows in the first norm, and in the first sum as well.
    wrong = {finding.site for finding in findings if finding.status is Status.FAILED}
    early = {"h.0.ln_1", "h.0.resid_mid"} if "h.0.ln_1" in wrong else set()
    where: dict[str, list[str]] = {}
    for finding in findings:
        own = finding.id in ("architecture", "activations.local")
        if not own or finding.status is not Status.FAILED or finding.site is None:
            continue
        kind = "embed" if finding.site in early else table[finding.site].kind
        if _BY_KIND.get(kind) in among and finding.site not in explained:
            places = where.setdefault(_BY_KIND[kind], [])
            if finding.site not in places:
                places.append(finding.site)
    return [Cause(fault, sites=tuple(places)) for fault, places in where.items()]
