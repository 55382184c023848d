"""The law of causality, seen from outside: what comes later changes nothing.

Everything from a boundary on is replaced, and the logits before it must keep their bits. Both runs
have the same shape, and each sequence the same place in it, so that an engine has no reason to
compute in another order. Should it do so all the same, noise floors decide, and the finding says
which of the two was shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding
from gpt_verify.laws.agreement import (
    LIMIT_PAIR,
    Agreement,
    logits_of,
    mean_squares,
    refuting,
    remember_ends,
)
from gpt_verify.laws.causality.boundaries import Cuts, cuts
from gpt_verify.laws.causality.sight import Sight
from gpt_verify.laws.subject import NotExamined, Subject, same_bits

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]
#: The first token that is replaced, and the first after it that is not.
Span = tuple[int, int]

LAW = "causality.bits"
#: Sequences of one call at most, and elements of its logits: 64 MB in float32.
ROWS, ELEMENTS = 4, 1 << 24
#: Sequences up to this length are probed with every token changed alone.
PROBES = 16


@refuting(LAW)
def check_bits(subject: Subject) -> Iterator[Finding]:
    """Every boundary of a short sequence, and the edges of tiles in the whole context."""
    if subject.config.n_ctx == 1:
        raise NotExamined("a context of one token has nothing that comes later")
    if subject.config.n_vocab == 1:
        raise NotExamined("a vocabulary of one token has none to replace it by")
    agreement, said = Agreement(subject), []
    for cut in cuts(subject.config):
        runs = _Runs(subject, cut)
        if wrong := runs.compare(agreement):
            if not runs.within_rounding():
                raise NotExamined("the same tokens have other logits each time")
            subject.memo[LAW] = "failed"
            sight = runs.sight(_sources(cut.length, wrong)).describe()
            why = f"{sight or 'it takes several later tokens'} ({_leaks(runs, wrong)})"
            yield agreement.failed(LAW, why, boundaries=wrong, length=cut.length, sight=sight)
            return
        said.append(f"{len(cut.boundaries)} boundaries in {cut.length} tokens")
    what = f"logits before {' and '.join(said)}, everything from there on replaced"
    if not agreement.unequal:
        yield agreement.passed(LAW, what)
        return
    repeats = runs.repeats()
    what += " (the bits depend on it" if repeats else " (the port does not repeat its bits anyway"
    yield agreement.passed(LAW, f"{what})", repeats=repeats)


class _Runs:
    """One sequence, and versions of it in which something was replaced."""

    def __init__(self, subject: Subject, cut: Cuts) -> None:
        self._subject, self.cut = subject, cut
        size = cut.length * subject.config.n_vocab
        self._rows = max(1, min(ROWS, len(cut.boundaries), ELEMENTS // size))
        self.tokens_T = subject.tokens(1, cut.length)[0]
        self._others_T = subject.other_tokens(self.tokens_T)
        self._right = self._run([self.tokens_T] * self._rows)
        if self._rows == 1:
            remember_ends(subject, self._right[0])

    def compare(self, agreement: Agreement) -> list[int]:
        """The boundaries before which something is beyond rounding."""
        wrong = []
        spans = [(s, self.cut.length) for s in self.cut.boundaries]
        for (boundary, _), got_TV, right_TV in self._replaced(spans):
            what = f"tokens from {boundary} on replaced"
            got, right = got_TV[:boundary], right_TV[:boundary]
            if agreement.compare(what, got, right, self.tokens_T).max() > LIMIT_PAIR:
                wrong.append(boundary)
            del got_TV, got  # large; the port may now make the next in its place
        return wrong

    def repeats(self) -> bool:
        """The same sequences have the same bits again."""
        return same_bits(self._run([self.tokens_T] * self._rows, keep=False), self._right)

    def within_rounding(self) -> bool:
        """The same sequences have the same logits again, to within rounding."""
        again = self._run([self.tokens_T] * self._rows, keep=False)
        agreement = Agreement(self._subject)
        for got_TV, right_TV in zip(again, self._right, strict=True):
            agreement.compare("again", got_TV, right_TV, self.tokens_T)
        return agreement.holds()

    def sight(self, sources: Sequence[int]) -> Sight:
        """Who sees these tokens, each of which is changed alone."""
        exact, length = self.repeats(), self.cut.length
        sees, tried = np.zeros((length, length), np.bool_), np.zeros((length, length), np.bool_)
        for (source, _), got_TV, right_TV in self._replaced([(s, s + 1) for s in sources]):
            sees[:, source] = self._changed(got_TV, right_TV, exact)
            tried[:, source] = True
        return Sight(sees, tried, self._subject.config.n_layer)

    def _changed(self, got_TV: Floats, right_TV: Floats, exact: bool) -> NDArray[np.bool_]:
        """At each position: by one bit, or where bits do not repeat, by more than rounding."""
        if exact:
            return np.asarray((got_TV != right_TV).any(axis=-1))
        squares_T = mean_squares(got_TV, right_TV)
        return self._subject.position_floors(squares_T, self.tokens_T) > LIMIT_PAIR

    def _replaced(self, spans: Sequence[Span]) -> Iterator[tuple[Span, Floats, Floats]]:
        """``(span, logits with its tokens replaced, right logits)``, both [T, V]."""
        for i in range(0, len(spans), self._rows):
            part = spans[i : i + self._rows]
            sequences = []
            for first, end in part:
                sequences.append(self.tokens_T.copy())
                sequences[-1][first:end] = self._others_T[first:end]
            yield from zip(part, self._run(sequences, keep=False), self._right, strict=False)

    def _run(self, sequences: Sequence[Tokens], keep: bool = True) -> Floats:
        """Filled up with the sequence itself, so that every call has the same shape."""
        rest = [self.tokens_T] * (self._rows - len(sequences))
        return logits_of(self._subject, np.stack([*sequences, *rest]), keep)


def _leaks(runs: _Runs, wrong: Sequence[int]) -> str:
    leak = f"boundary {wrong[0]} leaks" if len(wrong) == 1 else f"{len(wrong)} boundaries leak"
    return f"{leak} of {len(runs.cut.boundaries)} in {runs.cut.length} tokens"


def _sources(length: int, wrong: Sequence[int]) -> list[int]:
    """Tokens to change alone: all of a short sequence, else those behind the boundaries."""
    if length <= PROBES:
        return list(range(1, length))
    near = [s + step for s in wrong[:3] for step in (0, 1, 2, 7) if s + step < length]
    return sorted({*near, *range(length // 4, length, length // 4), length - 1})
