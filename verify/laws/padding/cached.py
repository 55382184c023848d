"""The law of padding with a cache: rows of several lengths, decoded together, are each as alone.

Which token is at which position, and which of the cached ones may be seen, must follow from the
mask at every call, and not from how much is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding
from gpt_verify.laws.agreement import Agreement, checked, logits_of, refuting
from gpt_verify.laws.decoding import Case, recognise
from gpt_verify.laws.padding.check import LAW as LEFT
from gpt_verify.laws.padding.check import TRAP
from gpt_verify.laws.padding.hypotheses import Padded, counted
from gpt_verify.laws.padding.masks import compared
from gpt_verify.laws.padding.steps import (
    WITH_POSITIONS,
    Layout,
    Lengths,
    stepped,
    ways_of_steps,
)
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.port import STEP_PADDED, STEP_PADDED_AT
from gpt_verify.reference.weights import parameter_count

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]
Step = Callable[[Tokens, object, Tokens, Tokens], tuple[Floats, object]]

LAW = "cache.padded"
#: Columns of the batch; of a model that takes long, and the parameters that may be read for more.
WIDTH, NARROW, READS = 8, 5, 8_000_000_000
#: Masked tokens before the rows of the batch.
PADS = (1, 0, 3)


@refuting(LAW)
def check_cached(subject: Subject) -> Iterator[Finding]:
    """With positions given and with a mask alone, in every way to split the batch."""
    step, step_at = subject.offers.get(STEP_PADDED), subject.offers.get(STEP_PADDED_AT)
    if step is None and step_at is None:
        raise NotExamined(STEP_PADDED.lacking)
    if subject.memo.get(LEFT, TRAP) is None:
        raise NotExamined("padding on the left is wrong already, without a cache")
    batch = padded_batch(subject)
    alone = [logits_of(subject, row[None])[0] for row in batch.sequences]
    decoded = _Decoded(subject, batch, Agreement(subject))
    every, said = splits(batch), []
    bare: Step | None = None
    if step is not None:
        bare = lambda tokens, cache, mask, at: step(tokens, cache, mask)  # noqa: E731
    if step_at is not None:
        for lengths in every:
            got = decoded.rows(step_at, lengths, batch.positions)
            if not compared(
                decoded.agreement, f"{_words(lengths)}, positions given", batch, got, alone
            ):
                found = decoded.failed(lengths, got, alone, step_at, batch.positions)
                yield _with_a_mask_alone(decoded, bare, lengths, alone, found)
                return
        said.append("positions given")
    if bare is not None:
        whole = decoded.rows(bare, every[0], batch.positions)
        derives = compared(Agreement(subject), "", batch, whole, alone)
        if not derives and step_at is None:
            raise NotExamined("positions do not follow from the mask in one call either")
        if derives:
            said.append("a mask alone")
        # Where positions are given as well, what the mask alone says of them shows in fewer.
        fewer = [lengths for lengths in every if len(lengths) < 3 or lengths == every[-1]]
        for lengths in every if step_at is None else fewer:
            expected: Sequence[Floats] = alone
            if not derives and step_at is not None:
                expected = decoded.rows(step_at, lengths, counted(batch))
            got = decoded.rows(bare, lengths, batch.positions)
            if not compared(
                decoded.agreement, f"{_words(lengths)}, a mask alone", batch, got, expected
            ):
                yield decoded.failed(lengths, got, expected, bare, batch.positions)
                return
    widths = ", ".join(str(len(row)) for row in batch.sequences)
    what = (
        f"rows of {widths} tokens, padded on the left, in {len(every)} splits, {' and '.join(said)}"
    )
    yield decoded.agreement.passed(LAW, what)


def _with_a_mask_alone(
    decoded: _Decoded,
    bare: Step | None,
    lengths: Lengths,
    alone: Sequence[Floats],
    found: Finding,
) -> Finding:
    """A failure with positions given; where it is a part of what goes wrong with a mask alone,
    that."""
    if bare is None:
        return found
    subject, batch = decoded.subject, decoded.batch
    whole = decoded.rows(bare, (batch.tokens.shape[1],), batch.positions)
    if not compared(Agreement(subject), "", batch, whole, alone):
        return found
    other = _Decoded(subject, batch, Agreement(subject))
    got = other.rows(bare, lengths, batch.positions)
    if compared(other.agreement, f"{_words(lengths)}, a mask alone", batch, got, alone):
        return found
    more = other.failed(lengths, got, alone, bare, batch.positions)
    part = WITH_POSITIONS.get(more.fault or "")
    return more if part is not None and part == found.fault else found


def padded_batch(subject: Subject) -> Padded:
    """A short batch, padded on the left."""
    n_ctx = subject.config.n_ctx
    calls = len(list(_compositions(WIDTH - max(PADS) - 1))) * WIDTH // 2
    width = WIDTH if calls * parameter_count(subject.config) <= READS else NARROW
    width = min(width, n_ctx)
    if width < 3:
        raise NotExamined(f"a context of {n_ctx} leaves no room for padding and a cache")
    pads = [min(pads, width - 2) for pads in PADS]
    mask = np.arange(width) >= np.array(pads)[:, None]
    tokens = subject.tokens(len(pads), width, 61)
    return Padded(tokens, mask.astype(np.int64))


def splits(batch: Padded) -> list[Lengths]:
    """The whole in one call, and every other way that leaves no row of the first one empty."""
    width = batch.tokens.shape[1]
    first = int((1 - batch.mask).sum(axis=1).max()) + 1
    found = [
        (begin, *rest)
        for begin in range(width, first - 1, -1)
        for rest in _compositions(width - begin)
    ]
    return sorted(found, key=len)


def _compositions(n: int) -> Iterator[Lengths]:
    """Every way to write n as a sum, in order."""
    if n == 0:
        yield ()
    for head in range(1, n + 1):
        for rest in _compositions(n - head):
            yield (head, *rest)


def _words(lengths: Lengths) -> str:
    return f"decoded as {' + '.join(map(str, lengths))}"


@dataclass
class _Decoded:
    """A padded batch, decoded in pieces."""

    subject: Subject
    batch: Padded
    agreement: Agreement

    def rows(self, step: Step, lengths: Lengths, positions: Tokens) -> list[Floats]:
        """The logits of what is no padding, row by row."""
        cache: object = None
        made, end = [], 0
        for length in lengths:
            begin, end = end, end + length
            piece = self.batch.tokens[:, begin:end]
            logits, cache = step(piece, cache, self.batch.mask[:, :end], positions[:, begin:end])
            real = self.batch.real[:, begin:end]
            made.append(checked(self.subject, logits, piece, f"padded, {_words(lengths)}", real))
        whole = np.concatenate(made, axis=1)
        return [row_TV[real] for row_TV, real in zip(whole, self.batch.real, strict=True)]

    def failed(
        self,
        lengths: Lengths,
        got: Sequence[Floats],
        expected: Sequence[Floats],
        step: Step,
        positions: Tokens,
    ) -> Finding:
        """What is wrong, by the mistake that the oracle would have to make as well: in this split,
        and one token after the other."""
        each = (splits(self.batch)[-1], lengths)
        cases = [
            self._case(
                split, got if split == lengths else self.rows(step, split, positions), expected
            )
            for split in dict.fromkeys(each)
        ]
        found = recognise(self.subject, cases, ways_of_steps(self.batch), stepped(self.batch))
        return self.agreement.failed(LAW, found.description, found.named)

    def _case(self, lengths: Lengths, got: Sequence[Floats], expected: Sequence[Floats]) -> Case:
        """The batch, call by call, as the oracle decodes it."""
        batch, layout = self.batch, Layout.of(len(self.batch.tokens), lengths)
        flat = batch.tokens[layout.row, layout.column]
        cuts = np.cumsum([length * len(batch.tokens) for length in lengths])[:-1]
        real = np.flatnonzero(batch.real[layout.row, layout.column])
        floors = [self.subject.floor(tokens_T) for tokens_T in batch.sequences]
        place = [
            (int(layout.row[i]), int(batch.positions[layout.row[i], layout.column[i]]))
            for i in real
        ]
        return Case(
            np.split(flat, cuts),
            real,
            np.stack([got[row][at] for row, at in place]),
            np.stack([expected[row][at] for row, at in place]),
            np.array([floors[row][at] for row, at in place]),
        )
