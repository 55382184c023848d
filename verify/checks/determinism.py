"""The laws of determinism: the same bits twice, nothing left in training mode, and the process
left as it was found.

A port that drops at random, or that sets a global switch, may be right once: in this run, in this
process, before its neighbour changes the switch back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from verify.checks.subject import NotExamined, Subject, same_bits
from verify.findings import Finding, Status
from verify.process_state import Change, changed_by, changes, snapshot

Floats = NDArray[np.floating]
Tokens = NDArray[np.int64]

MODE, STATE = "determinism.mode", "determinism.state"
#: Tokens of a run that looks for random numbers: dropout leaves none of so many values alone.
LENGTH = 33
#: Names in one line, at most.
NAMED = 4
_NOTHING_MOVES = (
    "no random state of the process moves: something is kept from call to call, read before it "
    "is written, summed in no fixed order, or drawn from a generator of the port's own"
)


class Determinism:
    """Every call is made twice; the bits must be the same."""

    def __init__(self) -> None:
        self._calls = 0
        self._difference: str | None = None

    def add(self, name: str, first: Floats, second: Floats) -> None:
        self._calls += 1
        if self._difference is None and (words := _difference(first, second)):
            self._difference = f"{name}: {words}"

    def findings(self, call: Callable[[], object]) -> list[Finding]:
        """``call``: one more run of the port, made only where the bits differ, to say why."""
        law = "determinism"
        if self._difference:
            message = f"{self._difference}; {_why(changed_by(call)) or _NOTHING_MOVES}"
            return [Finding(law, Status.FAILED, message)]
        if not self._calls:
            return [Finding(law, Status.NOT_EXAMINED, "the port was not run twice")]
        return [Finding(law, Status.PASSED, f"{self._calls} inputs run twice, same bits")]


def _difference(first: Floats, second: Floats) -> str | None:
    """How two calls on the same tokens differ; None where they have the same bits."""
    if first.shape != second.shape:
        return f"shape {list(first.shape)}, then {list(second.shape)}"
    if first.dtype != second.dtype:
        return f"dtype {first.dtype}, then {second.dtype}"
    if same_bits(first, second):
        return None
    a, b = (np.ascontiguousarray(x).view(np.uint8).reshape(x.size, -1) for x in (first, second))
    count = int((a != b).any(axis=-1).sum())
    return f"{count} of {first.size} logits differ between two calls"


def _why(moved: Sequence[Change]) -> str | None:
    """What random state a call moves, where it moves one."""
    drawn = [change.name for change in moved if change.is_random]
    if not drawn:
        return None
    return f"a call draws from {_listed(drawn)}: dropout or another random operation is on"


def check_mode(subject: Subject) -> list[Finding]:
    """No part is in training mode with a dropout that acts or would act, and nothing drops
    whatever the mode is."""
    port, tokens = subject.port, subject.tokens(1, min(LENGTH, subject.config.n_ctx), 41)
    assert port.training is not None, "the law needs it"
    first = np.array(port.logits(tokens))
    words = _difference(first, port.logits(tokens))
    parts = port.training()
    dropout = port.dropout() if port.dropout is not None else None
    acting = _acting(parts, dropout)
    details = {"training": parts, "dropout": dropout}
    if acting:
        message = f"{acting}; {words or 'the bits of two calls are the same even so'}"
        return [Finding(MODE, Status.FAILED, message, details=details)]
    if words:
        if not (drawing := _drawing(subject, tokens)):
            raise NotExamined("two calls differ, and nothing is seen to draw random numbers")
        message = f"{words}, although {_modes(parts)}; {drawing}"
        return [Finding(MODE, Status.FAILED, message, details=details)]
    drop = f"; {len(dropout)} dropouts are off" if dropout and not parts else ""
    message = f"{_modes(parts)}{drop}; two calls on {tokens.size} tokens, same bits"
    return [Finding(MODE, Status.PASSED, message, details=details)]


def _acting(parts: Sequence[str], dropout: Mapping[str, float] | None) -> str | None:
    """What drops in training mode, where something does."""
    if not parts:
        return None
    if dropout is None:  # the port names what is random, and has no mode
        return f"left on from training: {_listed(parts)}"
    # A part may apply the dropout that it holds by hand, and ask its own mode.
    held = {
        part: max((p for name, p in dropout.items() if _within(name, part)), default=0.0)
        for part in parts
    }
    inner = [part for part in parts if part in dropout] or [p for p in parts if held[p] > 0]
    if not inner:
        return None
    is_are = "is" if len(inner) == 1 else "are"
    largest = max(held[part] for part in inner)
    return f"{_listed(inner)} {is_are} in training mode, dropout p = {largest:g} would act"


def _within(name: str, part: str) -> bool:
    return part == "the model" or name == part or name.startswith(f"{part}.")


def _modes(parts: Sequence[str]) -> str:
    if not parts:
        return "nothing is in training mode"
    return f"{_listed(parts)} in training mode without any dropout"


def _drawing(subject: Subject, tokens: Tokens) -> str | None:
    port = subject.port
    found = port.draws(tokens) if port.draws is not None else []
    if found:
        return f"drawn at random, whatever the mode: {_listed(found)}"
    return _why(changed_by(lambda: port.logits(tokens)))


def check_state(subject: Subject) -> list[Finding]:
    """Loading the port and each of its calls leave the process as it was. Loading may draw first
    weights."""
    now = snapshot()
    found: list[tuple[str, list[Change]]] = []
    if subject.loading is not None:
        before, after = subject.loading.before, subject.loading.after
        found.append(("loading it", _lasting(changes(before, after))))
        found.append(("running it", _lasting(changes(after, now))))
    done = []
    for name, call in _calls(subject):
        try:
            moved = changed_by(call)
        except NotExamined:
            continue
        done.append(name)
        found.append((f"{name}()", moved))
    # What the first call changed is not changed again; what every call changes is said once.
    seen: set[str] = set()
    told = []
    for what, moved in found:
        new = [change for change in moved if change.name not in seen]
        seen |= {change.name for change in new}
        if new:
            told.append(f"{what} changes {_listed([str(change) for change in new])}")
    details = {"calls": done, "changed": sorted(seen)}
    if told:
        return [Finding(STATE, Status.FAILED, "; ".join(told), details=details)]
    loaded = "loading it and its" if subject.loading is not None else "its"
    message = f"{loaded} calls of {', '.join(done)} leave {len(now)} settings as they were"
    return [Finding(STATE, Status.PASSED, message, details=details)]


def _lasting(moved: Sequence[Change]) -> list[Change]:
    """Without the random states: whoever makes a module, the port or a law that copies it, draws
    its first weights."""
    return [change for change in moved if not change.is_random]


def _calls(subject: Subject) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that a port computes with, once, on a few tokens."""
    port, tokens = subject.port, subject.tokens(1, min(5, subject.config.n_ctx), 42)
    mask, places = np.ones_like(tokens), np.arange(tokens.size)[None]
    yield "logits", lambda: port.logits(tokens)
    if (activations := port.activations) is not None:
        yield "activations", lambda: activations(tokens, lambda site, value, narrowest=None: None)
    if (step := port.step) is not None:
        yield "step", lambda: step(tokens, None)
    if (padded := port.padded) is not None:
        yield "padded", lambda: padded(tokens, mask)
    if (padded_at := port.padded_at) is not None:
        yield "padded_at", lambda: padded_at(tokens, mask, places)
    if tokens.size < 2:  # which predicts nothing
        return
    if (loss := port.loss) is not None:
        yield "loss", lambda: loss(tokens, tokens)
    if (gradients := port.gradients) is not None:
        yield "gradients", lambda: gradients(tokens)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
