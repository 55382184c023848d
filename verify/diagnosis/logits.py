"""A port that shows nothing but logits: are known faults in them?"""

from __future__ import annotations

import numpy as np

from verify.checks.subject import Subject
from verify.diagnosis.deviations import Deviations
from verify.diagnosis.filter import Filtered, Match, matched_filter
from verify.faults.catalogue import CATALOGUE
from verify.findings import Cause, Finding, Status
from verify.numerics.cascade import LIMIT_FLOORS

#: Sequences, and tokens of each: enough for a standard error, and for every distance that matters.
SEQUENCES, LENGTH = 8, 24
LAW = "logits.faults"


def filter_logits(subject: Subject) -> tuple[Finding, list[Cause]]:
    """Look for every known fault in the logits of a port.

    Faults in all layers are tried first; only where none of them is there, each layer by itself.

    Returns:
        A finding, failed where a fault is there: also one that is far below the rounding noise, and
        so below what the comparison of logits can see. And the causes.
    """
    tokens_ST = subject.tokens(SEQUENCES, min(LENGTH, subject.config.n_ctx), len(LAW))
    # One by one: a fault that mixes the rows of a batch is another law's.
    logits = np.stack([subject.port.logits(row[None])[0] for row in tokens_ST])
    if logits.shape[-1] != subject.config.n_vocab:
        message = "the logits have another shape"
        return Finding(LAW, Status.NOT_EXAMINED, message, "logits"), []
    with np.errstate(all="ignore"):
        deviations = Deviations(subject.config, subject.weights, tokens_ST, subject.seed)
        error_SN, noise_SN = deviations.error(logits), deviations.noise(subject.precision)
        if not np.isfinite(error_SN).all():
            message = "the logits are not finite"
            return Finding(LAW, Status.NOT_EXAMINED, message, "logits"), []
        candidates = list(deviations.candidates(CATALOGUE.values(), single_layers=False))
        found = matched_filter(error_SN, noise_SN, candidates, LIMIT_FLOORS)
        if not found.matches:
            candidates += deviations.candidates(CATALOGUE.values(), single_layers=True)
            found = matched_filter(error_SN, noise_SN, candidates, LIMIT_FLOORS)
    causes = [Cause(match.candidate.fault, _where(match), ("logits",)) for match in found.matches]
    return _finding(found, len(candidates)), causes


def _finding(found: Filtered, tried: int) -> Finding:
    details = {
        "matches": [_described(match) for match in found.matches],
        "nearest": [_described(match) for match in found.nearest],
        "floors": {"before": found.before, "after": found.after},
    }
    if found.matches:
        named = " and ".join(map(_worded, found.matches))
        message = (
            f"explained by {named}: of {found.before:.3g} noise floors {found.after:.2g} are left"
        )
        return Finding(LAW, Status.FAILED, message, "logits", details=details)
    if found.before > LIMIT_FLOORS:
        near = ", ".join(map(_worded, found.nearest))
        message = f"unexplained; nearest: {near}" if near else "unexplained"
        return Finding(LAW, Status.FAILED, message, "logits", details=details)
    message = f"none of {tried} known faults, in all layers or in one, is in the logits"
    return Finding(LAW, Status.PASSED, message, "logits", details=details)


def _worded(match: Match) -> str:
    return f"{match.candidate} (coefficient {match.coefficient:.4g} ± {match.error:.1g})"


def _where(match: Match) -> str:
    layers = match.candidate.layers
    return "" if layers is None else f"layer {', '.join(map(str, layers))}"


def _described(match: Match) -> dict[str, object]:
    return {
        "fault": match.candidate.fault,
        "layers": match.candidate.layers,
        "coefficient": match.coefficient,
        "error": match.error,
    }
