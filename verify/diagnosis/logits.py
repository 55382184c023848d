"""A port that shows nothing but logits: are known faults in them?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from gpt_verify.diagnosis.deviations import Deviations
from gpt_verify.diagnosis.filter import Filtered, Match
from gpt_verify.diagnosis.forms.order import Order, described
from gpt_verify.diagnosis.forms.outputs import PERMUTED
from gpt_verify.diagnosis.wirings import WIRINGS
from gpt_verify.errors import GptVerifyError, Refused
from gpt_verify.findings import Cause, Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.catalogue import faults_of
from gpt_verify.laws.subject import Floats, Subject, Tokens
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.weights import parameter_count

#: Sequences, and tokens of each: enough for a standard error, and for every distance that matters.
SEQUENCES, LENGTH = 8, 24
#: Of models of experts, those in which rounding chooses none: so many at least are needed.
LEAST = 4
LAW = "logits.faults"
#: Faults that are tried in each layer by itself, at most.
TRACES = 16

_kept: dict[Hashable, Deviations] | None = None
_most = math.inf


@contextmanager
def deviations_kept(most: float = math.inf) -> Iterator[None]:
    """Within, ports of one checkpoint share what the faults would do to its logits.

    Args:
        most: parameters; of a larger checkpoint nothing is kept.
    """
    global _kept, _most
    before = _kept, _most
    _kept, _most = {}, most
    try:
        yield
    finally:
        _kept, _most = before


def forget_deviations() -> None:
    """Let go of what is kept: it may have been computed by a reference that was changed."""
    if _kept is not None:
        _kept.clear()


def _deviations(subject: Subject, tokens_ST: Tokens) -> Deviations:
    made = partial(Deviations, subject.config, subject.weights, tokens_ST, subject.seed)
    if _kept is None or parameter_count(subject.config) > _most:
        return made()
    key = subject.config, digest(subject.weights), tokens_ST.tobytes(), subject.seed
    if key not in _kept:
        _kept.clear()  # one set is large
        _kept[key] = made()
    return _kept[key]


def digest(weights: DeclaredWeights) -> bytes:
    """Of all tensors as the port's format holds them; computed once."""
    if "digest" not in weights.memo:
        made = hashlib.sha256()
        for name in sorted(weights):
            made.update(f"{name} {weights[name].shape} ".encode())
            made.update(np.ascontiguousarray(weights[name], np.float32).data)
        weights.memo["digest"] = made.digest()
    found: bytes = weights.memo["digest"]
    return found


def filter_logits(subject: Subject) -> tuple[Finding, list[Cause]]:
    """Look for every known fault in the logits of a port.

    Faults in all layers are tried first; only where none of them is there, each layer by itself.
    While the logits pass, only faults of which there is a trace: what one layer does is a part of
    what all do, as long as it is small.

    Returns:
        A finding, failed where a fault is there: also one that is far below the rounding noise, and
        so below what the comparison of logits can see. And the causes.
    """
    try:
        tokens_ST, logits = _run(subject, min(LENGTH, subject.config.n_ctx))
    except Exception as error:
        if isinstance(error, GptVerifyError) and not isinstance(error, Refused):
            raise
        # Positions from 1 raise at the end of the table, and can be told before it.
        tokens_ST, logits = _run(subject, max(1, min(LENGTH, subject.config.n_ctx) // 2))
    if logits.shape[-1] != subject.config.n_vocab:
        message = "the logits have another shape"
        return Finding(LAW, Status.NOT_EXAMINED, message, "logits"), []
    with np.errstate(all="ignore"):
        deviations = _deviations(subject, tokens_ST)
        if (left := deviations.decided(subject.precision)).sum() < LEAST:
            message = (
                f"rounding may choose other experts in {np.sum(~left)} of {len(left)} sequences"
            )
            return Finding(LAW, Status.NOT_EXAMINED, message, "logits"), []
        if not left.all():
            tokens_ST, logits = tokens_ST[left], logits[left]
            deviations = _deviations(subject, tokens_ST)
        if not deviations.distinguishable:
            message = "the reference's logits at a position are one number, which tells no fault"
            return Finding(LAW, Status.NOT_EXAMINED, message, "logits"), []
        error_SN = deviations.error(logits)
        if not np.isfinite(error_SN).all():
            message = "the logits are not finite"
            return Finding(LAW, Status.NOT_EXAMINED, message, "logits"), []
        floor_of = partial(deviations.floor, precision=subject.precision)
        known = {**faults_of(subject.config), **WIRINGS}
        faults = {name: f for name, f in known.items() if f.concerns(subject.precision)}
        candidates = [c for fault in faults.values() for c in deviations.candidates(fault)]
        matched = deviations.filter(subject.precision)
        found = matched.find(error_SN, candidates, LIMIT_FLOORS, floor_of)
        if not found.matches:
            # Where the logits are wrong in any case, whatever may explain them is tried.
            traced = matched.traces(error_SN, candidates)[:TRACES]
            names = list(faults) if found.before > LIMIT_FLOORS else traced
            for name in names:
                candidates += deviations.candidates(faults[name], single_layers=True)
            found = matched.find(error_SN, candidates, LIMIT_FLOORS, floor_of)
        if not found.matches and found.before > LIMIT_FLOORS:
            order = deviations.order(logits)
            moved = matched.find(deviations.error(logits, order), (), LIMIT_FLOORS)
            if moved.before <= LIMIT_FLOORS:
                return _elsewhere(order, found.before, moved.before)
    causes = [
        Cause(
            match.candidate.fault,
            _where(match),
            sites=("logits",),
            laws=("logits",),
            instead=match.instead,
            layers=match.candidate.layers,
        )
        for match in found.matches
    ]
    return _finding(found, len(candidates)), causes


def _elsewhere(order: Order, before: float, after: float) -> tuple[Finding, list[Cause]]:
    """The logits are right, and stand at other positions."""
    words = described(order, "position")
    message = (
        f"explained by {PERMUTED.name} ({words}): of {before:.3g} noise floors {after:.2g} are left"
    )
    details = {"matches": [], "nearest": [], "floors": {"before": before, "after": after}}
    cause = Cause(PERMUTED.name, words, sites=("logits",), laws=("logits",))
    return Finding(LAW, Status.FAILED, message, "logits", details=details), [cause]


def _run(subject: Subject, length: int) -> tuple[Tokens, Floats]:
    """Sequences of some length, and the port's logits of each."""
    tokens_ST = subject.tokens(SEQUENCES, length, len(LAW))
    # The first token and the last, which faults confuse with padding and with each other.
    tokens_ST[:, tokens_ST.shape[1] // 3] = 0
    tokens_ST[:, tokens_ST.shape[1] // 2] = subject.config.n_vocab - 1
    # One by one: a fault that mixes the rows of a batch is another law's.
    return tokens_ST, np.stack([np.array(subject.port.logits(row[None])[0]) for row in tokens_ST])


def _finding(found: Filtered, tried: int) -> Finding:
    details = {
        "matches": [_described(match) for match in found.matches],
        "nearest": [_described(match) for match in found.nearest],
        "floors": {"before": found.before, "after": found.after},
    }
    if found.matches:
        named = " and ".join(map(_describe, found.matches))
        message = (
            f"explained by {named}: of {found.before:.3g} noise floors {found.after:.2g} are left"
        )
        return Finding(LAW, Status.FAILED, message, "logits", details=details)
    if found.before > LIMIT_FLOORS:
        near = ", ".join(map(_describe, found.nearest))
        message = f"unexplained; nearest: {near}" if near else "unexplained"
        return Finding(LAW, Status.FAILED, message, "logits", details=details)
    message = f"none of {tried} known faults, in all layers or in one, is in the logits"
    return Finding(LAW, Status.PASSED, message, "logits", details=details)


def _describe(match: Match) -> str:
    others = f" or {' or '.join(match.instead)}" if match.instead else ""
    return f"{match.candidate}{others} (coefficient {match.coefficient:.4g} ± {match.error:.1g})"


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
