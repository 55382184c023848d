"""The laws of the loss: shifted by one, the mean over the predicted tokens, in nats.

The port's loss is compared with the loss of *its own logits*, in float64, so that an incorrect
logit is no incorrect loss, and only the rounding of a log-softmax and a mean lies between the two.
A port that rounds coarsely is run in float64 first, where it can be: an incorrect formula has
nothing to hide under there. One law compares end to end, with the loss of the oracle's logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS, Lockstep
from gpt_verify.laws.explain import Explained, Hypothesis
from gpt_verify.laws.law import a_whole_context, little
from gpt_verify.laws.loss.case import Case, aligned, mean_loss
from gpt_verify.laws.loss.hypotheses import SHIFTS, explained
from gpt_verify.laws.loss.labels import (
    SHORT,
    Labelled,
    meaning,
    padded_batches,
    with_special_labels,
)
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.loss import Losses, loss_noise, losses, mean_budget
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.scores import limit_max
from gpt_verify.port import FLOAT64_COPY, IGNORED, LOSS, MASKED_LOSS, PADDED, Capability, Port
from gpt_verify.reference.config import Config
from gpt_verify.reference.loss import log_softmax, loss_nats

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

#: Tokens of the sequence that is compared end to end.
ORACLE = 17
#: Logits of the longest sequence: all of n_ctx for a small model, 333 tokens for a released one.
LOGITS = 1 << 24


def takes(config: Config) -> int:
    """Bytes of the law of the loss: of its longest sequence."""
    return max(little(config), a_whole_context(replace(config, n_ctx=_longest(config))))


def _longest(config: Config) -> int:
    """Tokens of the longest sequence."""
    return min(config.n_ctx, max(SHORT, LOGITS // config.n_vocab))


def check_loss(subject: Subject) -> list[Finding]:
    """Nothing ignored: sequences of several lengths, and a batch of equal ones."""
    return _judge(subject, "loss.value", _nothing_ignored(subject))


def _nothing_ignored(subject: Subject) -> list[Labelled]:
    n_ctx, longest = subject.config.n_ctx, _longest(subject.config)
    inputs = []
    for length in sorted({n for n in (2, 3, SHORT, longest) if n <= n_ctx}):
        tokens = subject.tokens(1, length, 31)
        inputs.append(Labelled(f"length {length}", tokens, tokens))
    tokens = subject.tokens(3, min(n_ctx, 5), 31)
    inputs.append(Labelled(f"3 × {tokens.shape[1]}", tokens, tokens))
    return inputs


def explained_within(
    subject: Subject, mode: AbstractContextManager[None]
) -> Explained[Hypothesis[Sequence[Case]]]:
    """What a port may do to its loss in a mode in which its logits are right."""
    with mode:
        cases = _measure(subject.port, _nothing_ignored(subject), subject.precision)
    return Explained() if all(case.right for case in cases) else explained(cases)


def check_loss_ignored(subject: Subject) -> list[Finding]:
    """Labels of -100: each prediction alone, every other one, and the first label, which nothing
    predicts anyway."""
    tokens = subject.tokens(1, min(subject.config.n_ctx, SHORT), 32)
    length = tokens.shape[1]
    inputs = []
    for kept in range(1, length):
        labels = np.full_like(tokens, IGNORED)
        labels[:, kept] = tokens[:, kept]
        inputs.append(Labelled(f"only label {kept} of {length}", tokens, labels))
    first, other = tokens.copy(), tokens.copy()
    first[:, 0] = IGNORED
    other[:, 0::2] = IGNORED
    inputs.append(Labelled(f"label 0 of {length} ignored", tokens, first))
    if length > 3:
        inputs.append(Labelled(f"every other of {length} labels", tokens, other))
    return _judge(subject, "loss.ignored", inputs)


def check_loss_batch(subject: Subject) -> list[Finding]:
    """Rows of unequal lengths, the rest of each padded and ignored, in two orders."""
    width = min(subject.config.n_ctx, SHORT)
    lengths = (width, width // 2 + 1, 2) if width > 2 else (width, 1)
    inputs = []
    for order, seed in ((lengths, 33), (lengths[::-1], 34)):
        tokens = subject.tokens(len(order), width, seed)
        labels = tokens.copy()
        for row, length in enumerate(order):
            labels[row, length:] = IGNORED
            # As GPT-2 is padded: with its end of text, the last id.
            tokens[row, length:] = subject.config.n_vocab - 1
        inputs.append(Labelled(f"rows of {', '.join(map(str, order))}", tokens, labels))
    return _judge(subject, "loss.batch", inputs)


def check_loss_labels(subject: Subject) -> list[Finding]:
    """Labels that some code takes for none."""
    return _judge(subject, "loss.labels", list(with_special_labels(subject)))


def check_loss_masked(subject: Subject) -> list[Finding]:
    """A mask and labels together: padded batches."""
    _something_predicted(subject)
    return _judge(subject, "loss.masked", list(padded_batches(subject)), MASKED_LOSS)


def check_loss_reference(subject: Subject) -> list[Finding]:
    """End to end: the loss of the oracle's logits, to within what the noise of logits does."""
    _something_predicted(subject)
    tokens = subject.tokens(1, min(subject.config.n_ctx, ORACLE), 35)
    (case,) = _measure(
        subject.port, [Labelled(f"length {tokens.shape[1]}", tokens, tokens)], subject.precision
    )
    exact, noise = _oracle(subject, tokens[0])
    allowed = case.allowed + LIMIT_FLOORS * noise
    whole = replace(case, expected=exact, allowed=allowed)
    message = _describe(whole)
    score = _ratio(whole) * LIMIT_FLOORS
    if whole.right:
        message = f"{tokens.shape[1]} tokens: {message}"
        return [Finding("loss.reference", Status.PASSED, message, None, score, LIMIT_FLOORS)]
    if case.right:
        message += ": it is the loss of the port's own logits, which are not the reference's"
    return [Finding("loss.reference", Status.FAILED, message, None, score, LIMIT_FLOORS)]


def _judge(
    subject: Subject, law: str, inputs: Sequence[Labelled], needs: Capability[Any] = LOSS
) -> list[Finding]:
    _something_predicted(subject)
    port = subject.port
    float64_copy = None
    if subject.precision.u > FLOAT32.u and FLOAT64_COPY in subject.offers:
        float64_copy = _in_float64(subject, law, inputs, needs)
        if float64_copy is not None and float64_copy.status is Status.FAILED:
            return [float64_copy]
    cases = _measure(port, inputs, subject.precision)
    finding = _finding(law, _with_noise(subject, inputs, cases, subject.precision), cases, "")
    if float64_copy is not None and finding.status is Status.PASSED:
        finding = finding.saying(after=f"; {float64_copy.details['furthest']}")
    return [finding]


def _something_predicted(subject: Subject) -> None:
    if subject.config.n_ctx < 2:
        raise NotExamined("one position: nothing is predicted")


def _in_float64(
    subject: Subject, law: str, inputs: Sequence[Labelled], needs: Capability[Any]
) -> Finding | None:
    """The same in float64, where the rounding of the declared format hides nothing.

    A loss is often computed in float32 there too. One whose every value is a number of the
    declared format was stored in it, and float64 says nothing more about it.
    """
    try:
        with subject.offers[FLOAT64_COPY]() as float64_copy:
            if needs not in float64_copy.offers():
                return None
            cases = _measure(float64_copy, inputs, FLOAT32)
    except Exception:
        return None  # the law of architecture says why it does not run in float64
    values = np.array([case.measured for case in cases])
    if np.array_equal(subject.precision.round(values), values, equal_nan=True):
        return None
    return _finding(law, _with_noise(subject, inputs, cases, FLOAT32), cases, " in float64")


def _measure(port: Port, inputs: Sequence[Labelled], p: Precision) -> list[Case]:
    """Ask for each loss, and what it should be from the port's own logits."""
    # Nobody computes a loss in more than float32, whatever the logits are kept in.
    p = p if p.u > FLOAT32.u else FLOAT32
    cases: list[Case] = []
    tokens: Tokens | None = None
    own: Losses | None = None
    for item in inputs:
        if own is None or item.tokens is not tokens:
            tokens, own = item.tokens, _own_losses(port, item, p)
        counted = item.labels != IGNORED
        expected = mean_loss(own, counted)
        if item.mask is not None and not math.isfinite(expected):
            raise NotExamined("its logits of padded batches are not finite: see positions.padding")
        measured = _asked(port, item)
        of = counted & ~np.isnan(aligned(own.nats[1], 1))
        nats, budget = aligned(own.nats[1], 1)[of], aligned(own.budget, 1)[of]
        allowed = limit_max(len(inputs)) * mean_budget(p, nats, budget)
        found = Case(item.name, own, counted, measured, expected, allowed, item.tokens, item.mask)
        found = replace(found, special=tuple(meaning(port, own.n_vocab)))
        if item.mask is not None and not found.right:
            bare = _own_losses(port, replace(item, mask=None), p)
            found = replace(found, unmasked=bare)
        cases.append(found)
    return cases


def _asked(port: Port, item: Labelled) -> float:
    """The port's loss."""
    if item.mask is None:
        return float(port.offers()[LOSS](item.tokens, item.labels))
    return float(port.offers()[MASKED_LOSS](item.tokens, item.mask, item.labels))


def _own_losses(port: Port, item: Labelled, p: Precision) -> Losses:
    tokens, mask = item.tokens, item.mask
    logits = port.logits(tokens) if mask is None else port.offers()[PADDED](tokens, mask)
    ids = (0, IGNORED) if logits.shape[-1] >= -IGNORED else (0,)
    with np.errstate(all="ignore"):  # what is not finite is reported, not warned about
        return losses(logits, tokens, p, SHIFTS, ids)


def _with_noise(
    subject: Subject, inputs: Sequence[Labelled], cases: Sequence[Case], p: Precision
) -> list[Case]:
    """The loss may be computed in a pass of its own, whose logits differ by their noise.

    Measured only where the logits of the other pass do not explain the loss to the last digit.
    """
    found = []
    for item, case in zip(inputs, cases, strict=True):
        if not case.right and math.isfinite(case.error):
            floor_BT = _floors(subject, item)
            floor_BT *= max(p.u, FLOAT32.u) / subject.precision.u
            of = case.counted & ~np.isnan(aligned(case.losses.nats[1], 1))
            noise = aligned(floor_BT * case.losses.slope, 1)[of]
            case = replace(case, allowed=case.allowed + LIMIT_FLOORS * float(np.mean(noise)))
        found.append(case)
    return found


def _floors(subject: Subject, item: Labelled) -> Floats:
    """Noise floors, [B, T]; 0 at padding."""
    real = np.ones(item.tokens.shape, np.bool_) if item.mask is None else item.mask == 1
    floor_BT = np.zeros(item.tokens.shape)
    for row, (tokens_T, real_T) in enumerate(zip(item.tokens, real, strict=True)):
        floor_BT[row, real_T] = subject.floor(tokens_T[real_T])
    return floor_BT


def _finding(law: str, cases: Sequence[Case], exact: Sequence[Case], where: str) -> Finding:
    """The verdict on all cases.

    Args:
        cases: with what noise may do.
        exact: the same without it, for the name of a mistake.
        where: added to the name of a case.
    """
    limit = limit_max(len(cases))
    worst = max(cases, key=_ratio)
    details: dict[str, Any] = {
        "losses": {c.name: {"got": c.measured, "expected": c.expected} for c in cases}
    }
    score = _ratio(worst) * limit
    message = _describe(worst, where)
    wrong = [case for case in cases if not case.right]
    if not wrong:
        details["furthest"] = message
        message = f"{len(cases)} calls, the loss of the port's own logits; the furthest {message}"
        return Finding(law, Status.PASSED, message, None, score, limit, details)
    found = explained(exact)
    if not found.fitting:
        found = explained(cases)
    message += f": {found.description}"
    if not found:
        details["fits"] = [mistake.description for mistake in found.fitting]
    if len(cases) > 1:
        message += f" [{len(wrong)} of {len(cases)} calls]"
    return Finding(
        law, Status.FAILED, message, None, score, limit, named=found.named, details=details
    )


def _ratio(case: Case) -> float:
    """Error over what is allowed."""
    ratio = abs(case.error) / case.allowed if case.allowed else math.inf
    return math.inf if math.isnan(ratio) else ratio


def _describe(case: Case, where: str = "") -> str:
    text = f"loss[{case.name}{where}] = {case.measured:.9g}, should be {case.expected:.9g}"
    text += f" ± {case.allowed:.2g} nats"
    if math.isfinite(case.error) and not case.right:
        text += f" ({'too low' if case.error < 0 else 'too high'} by {abs(case.error):.3g})"
    return text


def _oracle(subject: Subject, tokens_T: Tokens) -> tuple[float, float]:
    """The loss of the oracle's logits, and what the noise of its logits does to it, in nats."""
    with np.errstate(all="ignore"):
        lockstep = Lockstep(subject.config, subject.weights, subject.precision, tokens_T)
        tiles: Iterator[tuple[int, Floats, Floats]] = lockstep.logits()
        exact, noise = (np.concatenate(x, axis=-1) for x in list(zip(*tiles, strict=True))[1:])
    return (
        loss_nats(exact, tokens_T),
        loss_noise(log_softmax(exact[:-1]), noise[:, :-1], tokens_T[1:]),
    )
