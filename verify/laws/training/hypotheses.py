"""What a port may do otherwise when it trains.

What it learns is compared with what the same port learns in evaluation mode without this or that,
or with what the reference makes of the tokens without a causal mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gpt_verify.findings import Named, naming
from gpt_verify.laws.agreement import Agreement
from gpt_verify.laws.decoding import Case, Way, recognise
from gpt_verify.laws.explain import explain
from gpt_verify.laws.loss.check import explained_within
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.training.learning import Difference, Learnt, learn, without_mask
from gpt_verify.port import Lesson, TrainingMode

#: A form of logits, which training may have as well.
LEFT_OUT = "block-left-out"
#: Nothing is hidden.
_EVERYTHING = Way(
    "no causal mask",
    sources=lambda before, n: np.ones((n, sum(before) + n), np.bool_),
)


@dataclass(frozen=True)
class Seen:
    """What a port learnt of one batch, and how that differs."""

    lesson: Lesson
    got: Learnt
    expected: Learnt
    differences: list[Difference]

    def differs(self, kind: str) -> bool:
        return any(d.kind == kind for d in self.differences)


class Evidence:
    """What a port learnt in some mode.

    Args:
        subject: the port.
        mode: which.
    """

    def __init__(self, subject: Subject, mode: TrainingMode) -> None:
        self.subject = subject
        self.mode = mode
        self.plain: Seen | None = None
        self.padded: Seen | None = None

    def add(
        self, lesson: Lesson, got: Learnt, expected: Learnt, differences: list[Difference]
    ) -> None:
        seen = Seen(lesson, got, expected, differences)
        if lesson.mask is None:
            self.plain = seen
        else:
            self.padded = seen

    @property
    def batches(self) -> list[Seen]:
        return [seen for seen in (self.plain, self.padded) if seen is not None]

    def differs(self, kind: str) -> bool:
        return any(seen.differs(kind) for seen in self.batches)


def named_by(evidence: Evidence) -> tuple[Named | None, str]:
    """The fault, and what is said of it; nothing where none fits, or several do."""
    again = evidence.mode.checkpointing
    found = explain(evidence, [_Mistake(again, *row) for row in _MISTAKES])
    if found.by is not None:
        return naming(found.by.fault), found.by.description
    if not found.fitting and evidence.differs("loss") and not evidence.differs("logits"):
        of_loss = explained_within(evidence.subject, evidence.mode.enter(False))
        if of_loss.by is not None:
            words = f"{_where(again)} {of_loss.description}"
            return naming(of_loss.by.fault, words=words), words
    if not found.fitting and (cases := _cases(evidence)):
        ways = [_passing_over(layer) for layer in range(evidence.subject.config.n_layer)]
        if (way := recognise(evidence.subject, cases, ways).by) is not None:
            words = f"{_where(again)} {way.description}"
            return naming(LEFT_OUT, words=words), words
    return None, found.description


def _passing_over(layer: int) -> Way:
    return Way(f"block {layer} is passed over", skipped=lambda other: other == layer)


def _where(checkpointing: bool) -> str:
    return "with checkpointing" if checkpointing else "in training mode"


@dataclass(frozen=True)
class _Mistake:
    """One that is made in a mode.

    Attributes:
        checkpointing: in the mode activations are computed again.
        plain, again: the faults without checkpointing and with it.
        words: what is said of it.
        does: whether a port that has it learns so.
    """

    checkpointing: bool
    plain: str
    again: str
    words: str
    does: Callable[[Evidence], bool]

    @property
    def fault(self) -> str:
        return self.again if self.checkpointing else self.plain

    @property
    def description(self) -> str:
        return f"{_where(self.checkpointing)} {self.words}"

    def fits(self, evidence: Evidence) -> float | None:
        return 0.0 if self.does(evidence) else None


def _no_causal_mask(evidence: Evidence) -> bool:
    cases = _cases(evidence)
    return bool(cases) and bool(recognise(evidence.subject, cases, [_EVERYTHING]))


def _cases(evidence: Evidence) -> list[Case]:
    """The plain batch, whose logits are others in this mode."""
    seen, subject = evidence.plain, evidence.subject
    if seen is None or not seen.differs("logits"):
        return []
    return [
        Case([tokens_T], np.arange(len(got_TV)), got_TV, expected_TV, subject.floor(tokens_T))
        for tokens_T, got_TV, expected_TV in zip(
            seen.lesson.tokens, seen.got.logits_BTV, seen.expected.logits_BTV, strict=True
        )
        if len(got_TV) == len(tokens_T)
    ]


def _as_without(change: Callable[[Lesson], Lesson | None]) -> Callable[[Evidence], bool]:
    """The padded batch is learnt as in evaluation mode with something of it changed."""

    def does(evidence: Evidence) -> bool:
        seen = evidence.padded
        if seen is None or not seen.differs("logits"):
            return False
        if evidence.plain is not None and evidence.plain.differences:
            return False
        changed = change(seen.lesson)
        if changed is None:
            return False
        try:
            other = learn(evidence.subject, [changed])
        except NotExamined:
            return False
        return _same_logits(evidence.subject, seen, other)

    return does


def _same_logits(subject: Subject, seen: Seen, other: Learnt) -> bool:
    agreement = Agreement(subject)
    assert seen.lesson.mask is not None
    for row, mask_T in enumerate(seen.lesson.mask):
        real = mask_T == 1
        got_TV, other_TV = seen.got.logits_BTV[row][real], other.logits_BTV[row][real]
        agreement.compare("the same", got_TV, other_TV, seen.lesson.tokens[row][real])
    return agreement.holds()


def _counted(lesson: Lesson) -> Lesson | None:
    """Positions count the padding."""
    if lesson.positions is None:
        return None
    counted = np.broadcast_to(np.arange(lesson.tokens.shape[1]), lesson.tokens.shape)
    return replace(lesson, positions=counted)


def _counted_without_mask(lesson: Lesson) -> Lesson | None:
    counted = _counted(lesson)
    return None if counted is None else without_mask(counted)


def _detached(evidence: Evidence) -> bool:
    """The forward pass is the same, and some tensors get nothing that got something."""
    if evidence.differs("logits") or evidence.differs("loss"):
        return False
    return any(
        set(idle) - set(seen.expected.idle.get(tensor, ()))
        for seen in evidence.batches
        for tensor, idle in seen.got.idle.items()
    )


def _recomputed(evidence: Evidence) -> bool:
    """The forward pass is the same, and the backward pass is another one."""
    if evidence.differs("logits") or evidence.differs("loss"):
        return False
    return evidence.differs("gradient") and not _detached(evidence)


def _scaled(evidence: Evidence) -> bool:
    """Loss and derivatives are those of evaluation mode, times one number."""
    if evidence.differs("logits") or not evidence.differs("loss"):
        return False
    factors = [seen.got.loss / seen.expected.loss for seen in evidence.batches]
    for seen in evidence.batches:
        got, expected = (
            np.array([along[name] for name in seen.got.along])
            for along in (seen.got.along, seen.expected.along)
        )
        if expected.any():
            factors.append(float(got @ expected / (expected @ expected)))
    if not np.isfinite(factors).all():
        return False
    nearest = float(np.median(factors))
    rounding = 1e3 * evidence.subject.precision.u
    return all(abs(factor - nearest) <= rounding * abs(nearest) for factor in factors)


_MISTAKES: tuple[tuple[str, str, str, Callable[[Evidence], bool]], ...] = (
    (
        "training-no-causal-mask",
        "training-checkpointing-no-causal-mask",
        "each token sees those after it",
        _no_causal_mask,
    ),
    (
        "training-loses-padding",
        "training-checkpointing-loses-padding",
        "the mask of padding is not handed on",
        _as_without(without_mask),
    ),
    (
        "training-loses-positions",
        "training-checkpointing-loses-positions",
        "positions count the padding",
        _as_without(_counted),
    ),
    (
        "training-loses-padding-and-positions",
        "training-checkpointing-loses-padding-and-positions",
        "mask and positions are not handed on",
        _as_without(_counted_without_mask),
    ),
    (
        "training-detached",
        "training-checkpointing-detached",
        "gradients do not reach all tensors",
        _detached,
    ),
    (
        "training-recomputes-otherwise",
        "training-checkpointing-recomputes-otherwise",
        "the backward pass is not that of the forward pass",
        _recomputed,
    ),
    (
        "training-loss-scaled",
        "training-checkpointing-loss-scaled",
        "the loss is multiplied by a number",
        _scaled,
    ),
)
