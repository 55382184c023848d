"""The law of resizing: a vocabulary with more rows, or fewer, leaves the old ones as they were.

Whoever adds a padding token to GPT-2 resizes it. New rows may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.laws.agreement import LIMIT_PAIR, Agreement, logits_of, refuting
from gpt_verify.laws.resizing.forms import UNTIES
from gpt_verify.laws.subject import NotExamined, Subject, Tokens, same_bits
from gpt_verify.numerics.loss import losses, mean_budget
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.port import LOSS, PARAMETERS, RESIZED, Floats, Parameter, Port

_LAW = "resizing"
#: Rows that are added, and taken away.
MORE, FEWER = 5, 3
#: Tokens of the sequence.
LENGTH = 9


@refuting(_LAW)
def check_resizing(subject: Subject) -> Iterator[Finding]:
    """Larger, then smaller."""
    n_vocab = subject.config.n_vocab
    agreement = Agreement(subject)
    sizes = [n_vocab + MORE] + [n_vocab - FEWER] * (n_vocab > FEWER + 1)
    for size in sizes:
        with subject.offers[RESIZED](size) as copy:
            failed = _judged(subject, copy, size, agreement)
        if failed is not None:
            yield failed
            return
    yield agreement.passed(_LAW, f"{' and '.join(map(str, sizes))} rows in place of {n_vocab}")


def _judged(subject: Subject, copy: Port, size: int, agreement: Agreement) -> Finding | None:
    """What is wrong with a copy; None where nothing is."""
    at = f"resized to {size}"
    stated = copy.special_ids().get("vocab_size", size)
    if stated != size:
        return _failed(f"{at}, its configuration says that it has {stated} rows", None)
    old = min(size, subject.config.n_vocab)
    tokens = subject.tokens(1, min(LENGTH, subject.config.n_ctx), 18) % old
    try:
        got = np.array(copy.logits(tokens))
    except Exception as error:
        said = f"{at}, it raises {type(error).__name__} on tokens that it had before"
        return _failed(said, "resizing-leaves-head")
    problem = _tables(subject, copy, size, old, at)
    if got.shape != (*tokens.shape, size):
        said = f"{at}, its logits have {got.shape[-1]} columns, should be {size}"
        # Of other tokens than it was asked for before it was resized.
        if copy.logits((tokens + 1) % old).shape[-1] == size:
            return _failed(f"{said}, of tokens that it had answered before", None)
        return _failed(said, "resizing-leaves-head")
    if problem is not None:
        return problem
    expected = logits_of(subject, tokens)[0]
    whole = expected.copy()
    whole[:, :old] = got[0, :, :old]
    agreement.compare(at, whole, expected, tokens[0])
    if not agreement.holds():
        return agreement.failed(_LAW, "the logits of old tokens are others")
    return _loss(copy, size, tokens, at)


def _tables(subject: Subject, copy: Port, size: int, old: int, at: str) -> Finding | None:
    """The rows of old tokens, at both ends, and whether these are one."""
    shown = copy.offers().get(PARAMETERS)
    names = _names(subject)
    if shown is None or not names:
        return None
    found = {p.name: p for p in shown()}
    before = {p.name: p for p in subject.parameters}
    held = [found[name] for name in names if name in found]
    if subject.config.tied and len({before[name].storage for name in names}) == 1:
        parted = [p.name for p in held if p.storage != held[0].storage]
        if parted:
            said = f"{at}, {parted[0]} and {held[0].name}, which were one matrix, are two"
            return _failed(said, UNTIES)
    for parameter in held:
        value = _rows(parameter, size, old)
        was = _rows(before[parameter.name], subject.config.n_vocab, old)
        if value is None or was is None:
            continue
        wrong = [i for i in range(old) if not same_bits(value[i], was[i])]
        if wrong:
            i = wrong[0]
            k = int(np.argmax(value[i] != was[i])) if value[i].shape == was[i].shape else 0
            said = (
                f"{parameter.name}[{i}, {k}] = {float(value[i][k]):.9g}, should be "
                f"{float(was[i][k]):.9g} as before it was {at}; {len(wrong)} of {old} old rows"
            )
            return _failed(said, _of_rows(value, was, _rows(parameter, size, size)))
    return None


def _of_rows(value: Floats, was: Floats, whole: Floats | None) -> str | None:
    """What became of the old rows: the same, elsewhere; or none of them is there."""
    held = {row.tobytes() for row in (value if whole is None else whole)}
    there = sum(row.tobytes() in held for row in was)
    if there == len(was):
        return "resizing-rows-moved"
    return "resizing-rows-anew" if there == 0 else None


def _names(subject: Subject) -> list[str]:
    """The port's names of wte, and of the head."""
    if subject.matching is None:
        raise NotExamined("no parameters shown")
    placed = subject.matching.placements
    wanted = {p.parameter for p in placed if p.tensor in ("wte", subject.config.head)}
    memory = {p.storage for p in subject.parameters if p.name in wanted}
    return [p.name for p in subject.parameters if p.name in wanted or p.storage in memory]


def _rows(parameter: Parameter, size: int, old: int) -> Floats | None:
    """The rows of old tokens; None where it is no table of that size."""
    value = parameter.read()
    if value.ndim != 2 or size not in value.shape:
        return None
    return value[:old] if value.shape[0] == size else value.T[:old]


def _loss(copy: Port, size: int, tokens: Tokens, at: str) -> Finding | None:
    """The loss of labels among which is the last id, which may be a new one."""
    loss = copy.offers().get(LOSS)
    if loss is None or tokens.shape[1] < 2:
        return None
    labelled = tokens.copy()
    labelled[:, -1] = size - 1
    try:
        logits = np.array(copy.logits(labelled))
    except Exception as error:
        said = f"{at}, it raises {type(error).__name__} on token {size - 1}, the last that it has"
        return _failed(said, None, end="embed")
    own = losses(logits, labelled, FLOAT32, (1,), ())
    nats, budgets = own.nats[1][0, :-1], own.budget[0, :-1]
    if copy.dtype not in ("float32", "float64") or not np.isfinite(nats).all():
        return None  # whether it is the loss of its logits, the law of the loss has judged
    try:
        got = float(loss(labelled, labelled))
    except Exception as error:
        said = f"{at}, its loss raises {type(error).__name__} where the last id is a label"
        return _failed(said, None)
    allowed = LIMIT_PAIR * mean_budget(FLOAT32, nats, budgets)
    expected = float(np.mean(nats))
    if math.isfinite(got) and abs(got - expected) <= allowed:
        return None
    said = f"{at}, its loss is {got:.9g}, should be {expected:.9g} ± {allowed:.2g} nats"
    return _failed(said, None)


def _failed(message: str, fault: str | None, **details: object) -> Finding:
    named = naming(fault)
    return Finding(_LAW, Status.FAILED, message, named=named, details=details)
