"""The laws of training: whoever trains a port trains the function that was verified.

What a port computes in evaluation mode is held to the reference by all other laws. Here it is held
to itself: in training mode with every dropout at 0, with activations that are computed a second
time in the backward pass, over parts of a batch, after it was frozen for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np

from gpt_verify.errors import described
from gpt_verify.findings import Finding, Named, Status, naming
from gpt_verify.laws.agreement import LIMIT_PAIR
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.laws.training.hypotheses import Evidence, named_by
from gpt_verify.laws.training.learning import (
    Comparison,
    Difference,
    Learnt,
    learn,
    padded_batch,
    plain_batch,
)
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.port import DROPOUT, IGNORED, MODES, PARAMETERS, UNFROZEN, Lesson, TrainingMode

Enter = Callable[[], AbstractContextManager[None]]


def check_mode(subject: Subject) -> Iterator[Finding]:
    """In training mode, as in evaluation mode."""
    mode = subject.offers[MODES]()[0]
    yield _held_to(subject, "training.mode", mode, None)


def check_checkpointing(subject: Subject) -> Iterator[Finding]:
    """With checkpointing, as in training mode without."""
    plain, *modes = subject.offers[MODES]()
    switched = [mode for mode in modes if mode.checkpointing]
    if not switched:
        raise NotExamined("no switch for gradient checkpointing")
    law = "training.checkpointing"
    for mode in switched:
        found = _held_to(subject, law, mode, plain)
        if found.status is Status.PASSED:
            found = _drops_the_same(subject, found, mode, plain) or found
        yield found
        if found.status is Status.FAILED:
            return


def check_accumulation(subject: Subject) -> Iterator[Finding]:
    """Two parts of a batch with unequal numbers of predictions."""
    law, whole = "training.accumulation", _with_fewer_labels(plain_batch(subject))
    total, every = _predictions(whole), _predictions(plain_batch(subject))
    parts = [_rows(whole, slice(0, 1)), _rows(whole, slice(1, None))]
    shares = [replace(part, share=_predictions(part) / total) for part in parts]
    expected, comparison = learn(subject, [whole]), Comparison(subject)
    if wrong := _of_own_loss(subject, comparison, whole, expected, every / total):
        words = "its loss is right, and its derivative is that of another one"
        batch = plain_batch(subject)
        if not _of_own_loss(subject, comparison, batch, learn(subject, [batch]), 1.0):
            words = "labels that are ignored have no part in its loss, and one in its derivative"
        yield _failed(law, wrong, naming(OWN_LOSS, words=words), words)
        return
    got = learn(subject, shares)
    what = f"{len(parts[0].tokens)} + {len(parts[1].tokens)} rows, added up"
    wrong = comparison.differences(what, got, expected, whole, every / total)
    if wrong:
        fault = None
        # Where a loss is wrong as well, or nothing is learnt at all, that is something else.
        if all(d.kind == "gradient" for d in wrong) and any(got.along.values()):
            fault = _of_parts(subject, parts, shares, got, {t for d in wrong for t in d.tensors})
        yield _failed(law, wrong, naming(fault), _WORDS.get(fault or "", ""))
        return
    try:
        divided = learn(subject, [replace(part, items=total) for part in parts])
    except NotExamined:
        yield _passed(law, f"{what}: as the whole batch", comparison)
        return
    what += ", divided by num_items_in_batch"
    wrong = comparison.differences(what, divided, expected, whole, every / total)
    if wrong:
        means = learn(subject, parts)
        fault = "training-accumulation-mean-of-means" if means.loss == divided.loss else None
        yield _failed(law, wrong, naming(fault), _WORDS.get(fault or "", ""))
        return
    yield _passed(law, f"{what}, and by their shares: as the whole batch", comparison)


def _of_parts(
    subject: Subject,
    parts: Sequence[Lesson],
    shares: Sequence[Lesson],
    got: Learnt,
    tensors: Set[str],
) -> str | None:
    """What was done to the gradients of two parts, where they do not add up."""
    made = {"training-gradients-zeroed": shares[1:], SHARES: parts}
    for fault, lessons in made.items():
        other = learn(subject, lessons)
        along = {name: other.along[name] for name in tensors}
        if not Comparison(subject).gradients("", got, replace(other, along=along), 1.0):
            return fault
    return None


def _of_own_loss(
    subject: Subject, comparison: Comparison, lesson: Lesson, own: Learnt, times: float
) -> list[Difference]:
    """What the port learns by its own loss, and not by the mean cross entropy of its logits, some
    of whose labels are ignored; nothing where that loss has another value, which its own laws
    see, or is computed in half precision."""
    if subject.precision.u > FLOAT32.u:
        return []
    plain = learn(subject, [replace(lesson, plain=True)])
    what = "a batch with ignored labels, by its own loss"
    wrong = comparison.differences(what, own, plain, lesson, times)
    return wrong if all(d.kind == "gradient" for d in wrong) else []


#: Forms: what no catalogue lists.
OWN_LOSS, SHARES = "loss-gradient", "loss-gradient-unscaled"
#: Name → sentence that completes "the port …".
NAMES = {
    SHARES: "hands back the derivative of its loss however that is multiplied",
    OWN_LOSS: "hands back another derivative of its loss than that of its value",
}
#: What is said of a fault that one comparison recognises.
_WORDS = {
    SHARES: "a factor of the loss does not reach the gradients",
    "training-gradients-zeroed": "the gradients of all parts but the last are lost",
    "training-accumulation-mean-of-means": (
        "num_items_in_batch is ignored: each part's mean counts as much"
    ),
    "training-freezing-unties": "names of one matrix have come to stand for several",
}


def check_freezing(subject: Subject) -> Iterator[Finding]:
    """The parameters, and what they learn, after they were frozen and unfrozen."""
    law, batch, shown = "training.freezing", plain_batch(subject), subject.offers[PARAMETERS]
    expected = learn(subject, [batch])
    before = {p.name: p.storage for p in shown()}
    with subject.offers[UNFROZEN]():
        after = {p.name: p.storage for p in subject.offers[PARAMETERS]()}
        moved = [name for name in before.keys() | after if before.get(name) != after.get(name)]
        got = None if moved else learn(subject, [batch])
    if got is None:
        untied = len(set(after.values())) > len(set(before.values()))
        fault = "training-freezing-unties" if untied else None
        name = sorted(moved)[0]
        says = "new" if name not in before else "gone" if name not in after else "moved"
        more = f", and {len(moved) - 1} more" if len(moved) > 1 else ""
        message = f"frozen and unfrozen, parameter {name} is {says}{more}"
        words = f"; {_WORDS[fault]}" if fault else ""
        yield Finding(law, Status.FAILED, message + words, named=naming(fault))
        return
    comparison = Comparison(subject)
    wrong = comparison.differences("the batch, frozen and unfrozen", got, expected, batch)
    if wrong:
        # A matrix that is no longer tied has the gradient of one of its two ends alone.
        fault = (
            "training-freezing-unties" if {t for d in wrong for t in d.tensors} == {"wte"} else None
        )
        yield _failed(law, wrong, naming(fault), _WORDS.get(fault or "", ""))
        return
    said = f"{len(before)} parameters, frozen and unfrozen: the same memory, the same gradients"
    yield _passed(law, said, comparison)


def _held_to(subject: Subject, law: str, mode: TrainingMode, other: TrainingMode | None) -> Finding:
    """What is learnt in one mode, against what is learnt in another; in evaluation mode where
    None."""
    comparison, evidence = Comparison(subject), Evidence(subject, mode)
    batches = {"a plain batch": plain_batch(subject), "a padded batch": padded_batch(subject)}
    wrong: list[Difference] = []
    compared = []
    for name, lesson in batches.items():
        if lesson is None:
            continue
        try:
            expected = _expected(subject, lesson, other)
        except NotExamined:
            if lesson.mask is None:
                raise
            continue
        if not np.isfinite(expected.loss):
            continue  # what the law of padding finds
        got = _in_mode(subject, lesson, mode)
        found = comparison.differences(f"{name} in {mode.name}", got, expected, lesson)
        evidence.add(lesson, got, expected, found)
        wrong += found
        compared.append(name)
    if not compared:
        raise NotExamined("its loss is not finite")
    if wrong:
        named, words = named_by(evidence)
        return _failed(law, wrong, named, words)
    against = "eval()" if other is None else other.name
    return _passed(law, f"{' and '.join(compared)} in {mode.name}: as in {against}", comparison)


def _expected(subject: Subject, lesson: Lesson, mode: TrainingMode | None) -> Learnt:
    """What is learnt in evaluation mode is asked for by several laws."""
    if mode is not None:
        return _in_mode(subject, lesson, mode)
    key = f"learnt {lesson.mask is None}"
    if key not in subject.memo:
        subject.memo[key] = learn(subject, [lesson])
    found: Learnt = subject.memo[key]
    return found


def _in_mode(subject: Subject, lesson: Lesson, mode: TrainingMode, drops: bool = False) -> Learnt:
    """NotExamined where it runs in evaluation mode alone: it is for inference."""
    try:
        return learn(subject, [lesson], mode.enter(drops))
    except NotExamined:
        raise
    except Exception as error:
        raise NotExamined(f"it does not run in {mode.name}: {described(error)}") from error


def _drops_the_same(
    subject: Subject, passed: Finding, mode: TrainingMode, plain: TrainingMode
) -> Finding | None:
    """Whether what was dropped in the forward pass is dropped when that is repeated.

    Drawn from the same seed, both modes drop the same in the forward pass, or nothing is said.
    """
    dropout = subject.offers.get(DROPOUT)
    likely = max(dropout().values(), default=0.0) if dropout else 0.0
    if not 0.0 < likely < 1.0:
        return None
    batch = plain_batch(subject)
    try:
        expected = _in_mode(subject, batch, plain, drops=True)
        got = _in_mode(subject, batch, mode, drops=True)
    except NotExamined:
        return None
    if got.loss != expected.loss or not same_bits(got.logits_BTV, expected.logits_BTV):
        return None
    # What is kept is made larger, twice in each block.
    times = (1.0 / (1.0 - likely)) ** (2 * subject.config.n_layer + 1)
    what = f"a batch in {mode.name}, with dropout"
    comparison = Comparison(subject)
    wrong = comparison.differences(what, got, expected, batch, times)
    if not wrong:
        return passed.saying(after="; what is dropped is dropped again")
    words = "the backward pass drops other numbers than the forward pass did"
    return _failed(passed.id, wrong, naming("training-checkpointing-draws-anew"), words)


def _failed(law: str, wrong: Sequence[Difference], named: Named | None, words: str) -> Finding:
    first = wrong[0]
    message = first.words + (f": {words}" if words else "")
    kinds = ", ".join(dict.fromkeys(d.kind for d in wrong))
    return Finding(
        law,
        Status.FAILED,
        message,
        None,
        first.floors,
        LIMIT_PAIR,
        named=named,
        details={"different": kinds, "tensors": list(first.tensors)},
    )


def _passed(law: str, said: str, comparison: Comparison) -> Finding:
    how = f"within rounding, {comparison.floors:.2g} noise floors"
    how = "same bits" if comparison.same_bits else how
    return Finding(law, Status.PASSED, f"{said}: {how}", None, comparison.floors, LIMIT_PAIR)


def _with_fewer_labels(batch: Lesson) -> Lesson:
    """The first half of the first row is not to be learnt, where more than one label is left."""
    labels, half = batch.labels.copy(), batch.labels.shape[1] // 2
    if half > 1:
        labels[0, :half] = IGNORED
    return replace(batch, labels=labels)


def _rows(batch: Lesson, rows: slice) -> Lesson:
    return replace(batch, tokens=batch.tokens[rows], labels=batch.labels[rows])


def _predictions(batch: Lesson) -> int:
    return int((batch.labels[:, 1:] != IGNORED).sum())
