"""The law of history: what a port makes of some tokens does not hang on what it did before.

One short sequence is asked for again and again, and between two of its runs the port does something
else. Whatever that leaves behind (a position, a mask, keys and values) shows at the next run, which
is compared with the one before: with itself, so that a port which is wrong elsewhere is not blamed.
Engines that keep something on purpose may round otherwise the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import described
from gpt_verify.findings import Finding, Status, naming
from gpt_verify.laws.agreement import LIMIT_PAIR, Agreement, Malformed, logits_of, refuting
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.port import LOSS, PADDED, PADDED_AT, STEP

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

LAW = "history"
#: Tokens of the sequence that is asked for, and of the longer one.
SHORT, LONGER = 8, 40
#: Tokens of two runs with a cache, of which each is followed by one more: what such a run leaves is
#: not the same after both.
CACHED = (2, 4)


@dataclass(frozen=True)
class Before:
    """What a port does before it is asked again.

    Attributes:
        words: ``a run with a cache``.
        call: does it; what it returns is not looked at, and what it raises is another law's matter.
        fault: of the catalogue, that changes what comes after it; empty where there is none.
    """

    words: str
    call: Callable[[], object]
    fault: str = ""


@refuting(LAW)
def check_history(subject: Subject) -> Iterator[Finding]:
    """The same tokens, after all that the port can do."""
    chain, said = _Chain(subject), []
    for before in befores(subject):
        if not _done(before.call):
            continue
        said.append(before.words)
        if wrong := chain.after(before):
            yield wrong
            return
    if (first := subject.first_call) is not None:
        at = first.tokens_T.size - 1
        got_TV = logits_of(subject, first.tokens_T[None])[0]
        what = "the first input of the run, at the very end"
        chain.agreement.compare(what, got_TV[at:], first.last_V[None], first.tokens_T, at)
        if not chain.agreement.holds():
            yield chain.agreement.failed(
                LAW, "something that was computed meanwhile has changed it"
            )
            return
    words = ", ".join(dict.fromkeys(said))
    yield chain.agreement.passed(LAW, f"{chain.tokens.size} tokens after {words}")


def befores(subject: Subject) -> Iterator[Before]:
    """All that this port can do, what leaves most behind first."""
    n_ctx, offers = subject.config.n_ctx, subject.offers
    if step := offers.get(STEP):
        for length in {min(length, n_ctx - 1) for length in CACHED if n_ctx > 1}:
            tokens = subject.tokens(1, length + 1, 112)
            yield Before(
                "a run with a cache",
                partial(_decode, step, tokens),
                "history-after-cache",
            )
    longer = subject.tokens(1, min(LONGER, n_ctx), 112)
    yield Before("a longer input", partial(subject.port.logits, longer))
    one = subject.tokens(1, 1, 112)
    yield Before("a single token", partial(subject.port.logits, one))
    batch = subject.tokens(3, min(SHORT, n_ctx), 112)
    yield Before("a batch", partial(subject.port.logits, batch), "history-after-batch")
    row = subject.tokens(1, min(SHORT, n_ctx), 113)  # as long as what is asked for after it
    mask = (np.arange(row.size) >= row.size // 2).astype(np.int64)[None]
    at = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    fault = "history-after-mask"
    if padded := offers.get(PADDED):
        yield Before("a run with a mask", partial(padded, row, mask), fault)
    if padded_at := offers.get(PADDED_AT):
        yield Before("a run with a mask", partial(padded_at, row, mask, at), fault)
    if (loss := offers.get(LOSS)) and row.size > 1:
        yield Before("a run with labels", partial(loss, row, row))
    if subject.port.device == "cpu":  # elsewhere such an id ends the process
        beyond = row.copy()
        beyond[0, -1] = subject.config.n_vocab
        yield Before(
            "an id that does not exist",
            partial(_refused, subject, beyond),
            "history-after-refusal",
        )


def _decode(step: Callable[..., tuple[Floats, object]], tokens: Tokens) -> None:
    """All but the last token in one call, then the last one."""
    _, cache = step(tokens[:, :-1], None)
    step(tokens[:, -1:], cache)


def _refused(subject: Subject, tokens: Tokens) -> None:
    """A port may refuse them, and may take them: a table has more rows here and there."""
    try:
        subject.port.logits(tokens)
    except Exception:
        return


def _done(call: Callable[[], object]) -> bool:
    """Whether the port can do that."""
    try:
        call()
    except Exception:
        return False
    return True


class _Chain:
    """The runs of one sequence, each compared with the one before it."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.tokens = subject.tokens(1, min(SHORT, subject.config.n_ctx), 111)
        self.agreement = Agreement(subject)
        self._last_TV = logits_of(subject, self.tokens)[0]
        for _ in range(2):  # what is left of another law may be gone after one call
            before_TV, self._last_TV = self._last_TV, logits_of(subject, self.tokens)[0]
        if self._apart(self._last_TV, before_TV):
            raise NotExamined("two calls on the same tokens differ, whatever is between them")

    def after(self, before: Before) -> Finding | None:
        """What is wrong when the sequence is asked for now, or None."""
        try:
            got_TV = logits_of(self._subject, self.tokens)[0]
        except Malformed as error:
            return self._unusable(before, str(error))
        except Exception as error:
            return self._unusable(before, described(error))
        self.agreement.compare(f"after {before.words}", got_TV, self._last_TV, self.tokens[0])
        if self.agreement.holds():
            self._last_TV = got_TV
            return None
        certain, why = self._repeated(before, got_TV)
        return self.agreement.failed(LAW, why, naming(before.fault if certain else None))

    def _repeated(self, before: Before, got_TV: Floats) -> tuple[bool, str]:
        """Whether it is this that makes the difference, and how one can tell. A port that is wrong
        now and then is not wrong again when the same is done again."""
        right_TV, words = self._last_TV, f"{before.words} changes what is computed after it"
        again_TV = logits_of(self._subject, self.tokens)[0]
        if not self._apart(again_TV, got_TV):
            return True, f"{words}, from then on"
        if self._apart(again_TV, right_TV):
            return False, "every call after it has other logits"
        _done(before.call)
        if self._apart(logits_of(self._subject, self.tokens)[0], right_TV):
            return True, f"{words}, once"
        return False, "and when the same is done again, nothing is wrong"

    def _apart(self, a_TV: Floats, b_TV: Floats) -> bool:
        agreement = Agreement(self._subject)
        return bool(agreement.compare("", a_TV, b_TV, self.tokens[0]).max() > LIMIT_PAIR)

    def _unusable(self, before: Before, why: str) -> Finding:
        message = f"after {before.words} the port cannot be used any more: {why}"
        return Finding(LAW, Status.FAILED, message, named=naming(before.fault))
