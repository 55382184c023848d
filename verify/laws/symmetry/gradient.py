"""The law of symmetry, for the gradient: when the weights are rewritten, it is rewritten with them.

If f(A θ) = f(θ), then ⟨∇f(A θ), A v⟩ = ⟨∇f(θ), v⟩ for every direction v. Both sides are the port's
own. How far they may part by rounding is what the law of the gradient has measured for each v.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.derivatives import Derivative
from gpt_verify.laws.float64_copy import throughout
from gpt_verify.laws.gradient.check import what_of
from gpt_verify.laws.port_gradient import PortGradient
from gpt_verify.laws.reference_gradient import ReferenceGradient, reference_gradient
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.symmetry.check import at_once
from gpt_verify.laws.symmetry.transforms import Symmetry
from gpt_verify.laws.symmetry.trial import Prepared, Trial, whole
from gpt_verify.laws.symmetry.writes import Stored
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.port import FLOAT64_COPY, GRADIENTS, Port

_LAW = "symmetry.gradient"
#: Of the rewritings that keep the noise as it is; an added constant would raise it.
_NAMES = ("scale", "rotate", "heads", "neurons")
#: Tensors that are named at most.
_NAMED = 3


@dataclass(frozen=True)
class _Run:
    """What the port computed with its weights as they were.

    Attributes:
        arithmetic: ``float64``.
        finer: its unit roundoff ÷ that of the declared precision.
        along: ⟨gradient, v⟩ for each direction.
        known: what is known of each: the noise floor.
    """

    arithmetic: str
    finer: float
    along: Sequence[float]
    known: Sequence[Derivative]


@dataclass(frozen=True)
class _Pair:
    """One derivative before and after."""

    what: str
    before: float
    after: float
    error: float

    @property
    def floors(self) -> float:
        if not np.isfinite(self.after):
            return float("inf")
        difference = abs(self.after - self.before)
        return difference / self.error if difference else 0.0

    @property
    def visible(self) -> bool:
        return abs(self.before) > LIMIT_FLOORS * self.error


def check_symmetry_gradient(subject: Subject) -> Iterable[Finding]:
    """One finding, of all tensors."""
    if subject.config.keys.experts is not None:
        # How noisy a derivative is depends on how many tokens an expert has, which is measured
        # with the weights as they are, and not as they are brought to what can be moved exactly.
        raise NotExamined("which experts a token takes changes with the weights")
    reference = reference_gradient(subject)
    result = at_once(subject)
    if result.wrong:
        raise NotExamined("the logits change already, and so must their derivatives")
    made = [
        one for name, one in result.each.items() if name in _NAMES and name not in result.unseen
    ]
    some = [one for one in made if isinstance(one, Prepared)]
    if not some:
        raise NotExamined("no rewriting of its weights can be made that shows in its logits")
    prepared, stored = whole(some), Stored(subject)
    with stored.put_back():
        trial = Trial(subject, stored)
        trial.base(prepared)
        before = _run(subject, reference, None)
        trial.moved(prepared, prepared.places)
        after = _run(subject, reference, prepared.symmetry)
    pairs = list(_pairs(before, after, before.known))
    if before.finer == 1.0 and any(pair.floors > LIMIT_FLOORS for pair in pairs):
        # Before noise alone refutes, it is measured by more draws.
        sure = reference_gradient(subject, surely=True)
        known = {_key(d): d for d in (*sure.known, *sure.both_ends)}
        pairs = list(_pairs(before, after, [known[_key(d)] for d in before.known]))
    return [_finding(before.arithmetic, pairs)]


def _key(derivative: Derivative) -> tuple[str, tuple[str, ...]]:
    return derivative.direction.tensor, derivative.direction.sites


def _pairs(before: _Run, after: _Run, every: Sequence[Derivative]) -> Iterator[_Pair]:
    for known, one, other in zip(every, before.along, after.along, strict=True):
        if not np.isfinite(one) or (before.arithmetic == "float16" and not np.isfinite(other)):
            continue  # the law of the gradient says so
        # Both are noisy.
        error = float(np.sqrt(2) * known.error(before.finer))
        yield _Pair(what_of(known), one, other, error)


def _finding(arithmetic: str, pairs: Sequence[_Pair]) -> Finding:
    if not any(pair.visible for pair in pairs):
        raise NotExamined("every derivative is lost in the noise, or not finite")
    score = max(pair.floors for pair in pairs)
    details = {pair.what: pair.floors for pair in pairs}
    wrong = [pair for pair in pairs if pair.floors > LIMIT_FLOORS]
    if not wrong:
        message = (
            f"{len(pairs)} derivatives move with the weights: within {score:.3g} noise floors in "
            f"{arithmetic}"
        )
        return Finding(_LAW, Status.PASSED, message, None, score, LIMIT_FLOORS, details)
    said = [
        f"{pair.what}: ⟨gradient, v⟩ = {pair.after:.9g}, should be {pair.before:.9g} ± "
        f"{pair.error:.2g} ({pair.floors:.3g} noise floors in {arithmetic})"
        for pair in wrong[-_NAMED:]
    ]
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    message = (
        f"{'; '.join(said)}{more}: the weights were rewritten, the output is the same, and the "
        f"gradient does not follow; in the backward pass from the loss, "
        f"{wrong[-1].what} is the first"
    )
    return Finding(_LAW, Status.FAILED, message, None, score, LIMIT_FLOORS, details)


def _run(subject: Subject, reference: ReferenceGradient, symmetry: Symmetry | None) -> _Run:
    """In float64 where the port can, and otherwise as it is."""
    port, finer = subject.port, FLOAT64.u / subject.precision.u
    float64 = subject.offers.get(FLOAT64_COPY)
    if float64 and port.dtype != "float64":
        try:
            with float64() as float64_copy:
                if GRADIENTS in float64_copy.offers() and throughout(
                    subject, float64_copy, reference.tokens
                ):
                    return _along(subject, float64_copy, "float64", finer, reference, symmetry)
        except Exception:  # the law of architecture says that it does not run in float64
            pass
    return _along(subject, port, port.dtype, 1.0, reference, symmetry)


def _along(
    subject: Subject,
    port: Port,
    arithmetic: str,
    finer: float,
    reference: ReferenceGradient,
    symmetry: Symmetry | None,
) -> _Run:
    assert subject.matching is not None, "what is not matched is not rewritten"
    subject.weights.forget()
    moved = {id(d): d if symmetry is None else symmetry.direction(d) for d in reference.directions}
    gradient = PortGradient.of(port, subject.matching, list(moved.values()), reference.tokens)
    known, along = [], []
    for derivative in reference.told_apart(gradient.tells_ends_apart):
        value = gradient.along(moved[id(derivative.direction)])
        if value is not None:
            known.append(derivative)
            along.append(value)
    return _Run(arithmetic, finer, along, known)
