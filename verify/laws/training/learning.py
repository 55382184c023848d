"""What a port learns from a batch, and whether it learns the same in another way.

Losses, logits and derivatives of the two ways have the same bits in most engines. Where they do
not, the logits are compared in noise floors of theirs, and each derivative in floors of the
reference's derivative of the same batch: padding changes neither the function nor its noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.directions import draw
from gpt_verify.laws.agreement import LIMIT_PAIR, Agreement
from gpt_verify.laws.loss.allowance import allowance
from gpt_verify.laws.port_gradient import PortGradient
from gpt_verify.laws.reference_gradient import batch_of, reference_gradient
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.port import IGNORED, LEARN, PADDED, PADDED_AT, Lesson

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]
#: Columns of padding of a padded batch.
PADS = 3


@dataclass(frozen=True)
class Learnt:
    """What came of a batch.

    Attributes:
        loss: in nats, of each part of the batch times its share, added up.
        logits_BTV: of all its rows; without the last position where a part has none of it: who
            takes targets is not given the last token.
        along: tensor → ⟨gradient, v⟩.
        idle: tensor → the parts of it that get no gradient at all.
    """

    loss: float
    logits_BTV: Floats
    along: dict[str, float]
    idle: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Difference:
    """How two ways differ.

    Attributes:
        kind: ``logits``, ``loss`` or ``gradient``.
        words: which number, and what it should be.
        floors: how far they are apart, in noise floors.
        tensors: whose derivatives differ.
    """

    kind: str
    words: str
    floors: float
    tensors: tuple[str, ...] = ()


def plain_batch(subject: Subject) -> Lesson:
    """The batch whose derivatives the reference knows."""
    tokens = batch_of(subject)
    return Lesson(tokens, tokens)


def padded_batch(subject: Subject) -> Lesson | None:
    """The same rows, the first with padding on the right alone, each further one with more of it on
    the left; the same predictions are learnt. None where that does not fit, or has no mask."""
    if PADDED not in subject.offers and PADDED_AT not in subject.offers:
        return None
    plain = batch_of(subject)
    rows, length = plain.shape
    if length + PADS > subject.config.n_ctx:
        return None
    left = np.arange(rows) % (PADS + 1)
    at = np.arange(length + PADS) - left[:, None]
    real = (at >= 0) & (at < length)
    tokens = np.where(real, np.take_along_axis(plain, np.clip(at, 0, length - 1), 1), 0)
    labels = np.where(real & (at > 0), tokens, IGNORED)
    positions = np.where(real, at, 0) if PADDED_AT in subject.offers else None
    return Lesson(tokens, labels, real.astype(np.int64), positions)


def learn(
    subject: Subject,
    lessons: Sequence[Lesson],
    mode: AbstractContextManager[None] | None = None,
) -> Learnt:
    """Learn from these batches in a mode; in evaluation mode where None."""
    if subject.matching is None:
        raise NotExamined("no parameters shown")
    directions = draw(subject.config, subject.rng(*b"gradient"))
    gradient = PortGradient(subject.matching, directions)
    with mode or nullcontext():
        outcomes = subject.offers[LEARN](lessons, gradient)
    along, idle = {}, {}
    for direction in directions:
        value = gradient.along(direction)
        if value is not None:
            along[direction.tensor], idle[direction.tensor] = value, gradient.idle(direction)
    if not along:
        raise NotExamined("no gradient of a parameter that was matched to a tensor")
    loss = sum(loss * lesson.share for (loss, _), lesson in zip(outcomes, lessons, strict=True))
    fewest = min(logits_BTV.shape[1] for _, logits_BTV in outcomes)
    logits = np.concatenate([logits_BTV[:, :fewest] for _, logits_BTV in outcomes])
    return Learnt(loss, logits, along, idle)


class Comparison:
    """Two ways of learning the same; what differs first comes first."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.floors = 0.0
        self.same_bits = True

    def differences(
        self, what: str, got: Learnt, expected: Learnt, lesson: Lesson, times: float = 1.0
    ) -> list[Difference]:
        """What differs by more than noise.

        Args:
            what: was compared.
            lesson: the whole batch.
            times: how often as large as of the plain batch the noise of a derivative may be.
        """
        found = self._logits(what, got.logits_BTV, expected.logits_BTV, lesson)
        found += self._loss(what, got, expected, lesson)
        return found + self.gradients(what, got, expected, times)

    def _logits(
        self, what: str, got_BTV: Floats, expected_BTV: Floats, lesson: Lesson
    ) -> list[Difference]:
        length = lesson.tokens.shape[1]
        if {got_BTV.shape[1], expected_BTV.shape[1]} == {length, length - 1}:
            got_BTV, expected_BTV = got_BTV[:, : length - 1], expected_BTV[:, : length - 1]
        if got_BTV.shape != expected_BTV.shape:
            shapes = f"{list(got_BTV.shape)}, not {list(expected_BTV.shape)}"
            return [Difference("logits", f"logits of {what} have shape {shapes}", math.inf)]
        agreement = Agreement(self._subject)
        for row, tokens_T in enumerate(lesson.tokens):
            real = np.ones(len(tokens_T), bool) if lesson.mask is None else lesson.mask[row] == 1
            real = real[: got_BTV.shape[1]]
            sequence = tokens_T[: len(real)][real]
            agreement.compare(
                f"row {row} of {what}", got_BTV[row][real], expected_BTV[row][real], sequence
            )
        self.floors = max(self.floors, agreement.floors)
        self.same_bits &= not agreement.unequal
        if agreement.holds():
            return []
        return [Difference("logits", str(agreement.worst), agreement.floors)]

    def _loss(self, what: str, got: Learnt, expected: Learnt, lesson: Lesson) -> list[Difference]:
        if got.loss == expected.loss:
            return []
        self.same_bits = False
        allowed = allowance(self._subject, lesson.tokens, lesson.labels, lesson.mask)
        floors = LIMIT_PAIR * abs(got.loss - expected.loss) / allowed
        if math.isnan(floors):
            floors = math.inf
        self.floors = max(self.floors, floors)
        if floors <= LIMIT_PAIR:
            return []
        message = f"loss of {what} = {got.loss:.9g}, should be {expected.loss:.9g} ± {allowed:.2g}"
        return [Difference("loss", message, floors)]

    def gradients(self, what: str, got: Learnt, expected: Learnt, times: float) -> list[Difference]:
        """Of the tensors whose derivatives are expected, those that differ by more than noise."""
        if all(
            got.along[name] == value or (math.isnan(got.along[name]) and math.isnan(value))
            for name, value in expected.along.items()
        ):
            return []
        self.same_bits = False
        apart = self._apart(got, expected, times, surely=False)
        if any(floors > LIMIT_PAIR for floors, _ in apart.values()):
            apart = self._apart(got, expected, times, surely=True)
        self.floors = max([self.floors, *(floors for floors, _ in apart.values())])
        wrong = {
            name: (
                floors,
                f"{name}: ⟨gradient, v⟩ of {what} = {got.along[name]:.9g}, should be "
                f"{expected.along[name]:.9g} ± {error:.2g}",
            )
            for name, (floors, error) in apart.items()
            if floors > LIMIT_PAIR
        }
        if not wrong:
            return []
        floors, message = max(wrong.values())
        more = f"; {len(wrong)} of {len(expected.along)} tensors" if len(wrong) > 1 else ""
        return [Difference("gradient", message + more, floors, tuple(wrong))]

    def _apart(
        self, got: Learnt, expected: Learnt, times: float, surely: bool
    ) -> dict[str, tuple[float, float]]:
        """Tensor → how far its derivatives are apart, in noise floors, and that floor."""
        reference = reference_gradient(self._subject, surely)
        known = {d.direction.tensor: d for d in reference.told_apart(False)}
        found = {}
        for name, value in expected.along.items():
            error = times * known[name].error() if name in known else math.nan
            if not (math.isfinite(value) and math.isfinite(error)):
                continue  # it overflows, or nothing is known of its noise
            apart = abs(got.along[name] - value)
            floors = (apart / error if error else math.inf) if apart else 0.0
            found[name] = (math.inf if math.isnan(floors) else floors), error
        return found


def without_mask(lesson: Lesson) -> Lesson:
    """The same batch, its padding taken for tokens, where it gives positions at those."""
    return replace(lesson, mask=np.ones_like(lesson.tokens))
