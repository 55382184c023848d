"""The law of padding: sequences that are padded on the left have the logits that they have alone.

Padding moves a sequence to the right, so that its positions are no longer those of its tokens.
Whoever hands over a mask and no positions relies on the port to find them. A port that does not is
easily used wrongly: the finding says so, and proves that it is this and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.graph.decode import decode
from gpt_verify.laws.agreement import (
    LIMIT_PAIR,
    Agreement,
    Malformed,
    checked,
    logits_of,
    mean_squares,
    refuting,
)
from gpt_verify.laws.decoding import Case, Way, read_off, recognise
from gpt_verify.laws.explain import Explained
from gpt_verify.laws.padding.forms import WEAK, forms, weak
from gpt_verify.laws.padding.hypotheses import COUNTED, Padded, ways
from gpt_verify.laws.padding.hypotheses import counted as positions_counted
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.numerics.weights import Widened
from gpt_verify.port import PADDED, PADDED_AT

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

LAW = "positions.padding"
#: Tokens of a padded row at most.
WIDTH = 17
#: What other laws of padding find in the memo: positions follow the mask, or are given; they count
#: the padding where they are not given. None where padding on the left is wrong.
RIGHT, TRAP = "right", "trap"
#: Times the limit of noise that other positions must change.
FAR = 4.0


@refuting(LAW)
def check_padding(subject: Subject) -> Iterator[Finding]:
    """With positions given and with a mask alone, as far as the port takes them."""
    padded_at = subject.offers.get(PADDED_AT)
    padded = subject.offers.get(PADDED) if padded_at else subject.offers[PADDED]
    if subject.config.n_ctx == 1:
        raise NotExamined("a context of one token leaves no room for padding")
    batches = padded_batches(subject)
    lengths = ", ".join(str(len(tokens_T)) for tokens_T in batches[0].sequences)
    said = f"sequences of {lengths} tokens padded on the left in two ways"
    given = None
    if padded_at is not None:
        given = _Runs(subject, batches, lambda b: padded_at(b.tokens, b.mask, b.positions))
        if not given.agreement.holds():
            subject.memo[LAW] = None
            yield given.failed()
            return
        said += ", mask and positions given"
        if _ignores(subject, given, batches[0], padded_at):
            subject.memo[LAW] = None
            words = "other positions are given, and the logits stay as they were: they are ignored"
            named = naming("padding-positions-ignored")
            yield Finding(LAW, Status.FAILED, words, named=named)
            return
    if padded is None:
        assert given is not None, "one of the two is there"
        subject.memo[LAW] = RIGHT
        yield given.agreement.passed(LAW, said, derives_positions=None)
        return
    bare = _Runs(subject, batches, lambda b: padded(b.tokens, b.mask))
    if bare.agreement.holds():
        worse = max(filter(None, (given, bare)), key=lambda runs: runs.agreement.floors)
        said += " and a mask alone" if given else ", a mask alone"
        subject.memo[LAW] = RIGHT
        yield worse.agreement.passed(LAW, said, derives_positions=True)
        return
    # A port that takes positions says itself what it does without them, whatever else is wrong with
    # it; of one that does not, the oracle has to say it.
    if padded_at is None:
        counted = bare.explained_by(COUNTED)
    else:
        counted = bare.agrees_with(lambda b: padded_at(b.tokens, b.mask, positions_counted(b)))
    trap = counted and given is not None
    subject.memo[LAW] = TRAP if trap else None
    yield _without_positions(given, bare, counted, said)


def _ignores(
    subject: Subject, given: _Runs, batch: Padded, padded_at: Callable[..., Floats]
) -> bool:
    """Whether positions that count the padding change nothing, where they would change the
    oracle's logits by far more than noise."""
    if subject.config.own is not None:
        return False
    try:
        if not given.agrees_with(lambda b: padded_at(b.tokens, b.mask, positions_counted(b))):
            return False
    except Malformed:  # other scores may overflow, which these did not
        return False
    flat, weights = [batch.tokens.reshape(-1)], Widened(subject.weights)
    counted = next(way for way in ways(batch) if way.description == COUNTED)
    right, other = (decode(weights, subject.config, flat, way) for way in (batch.right, counted))
    if right is None or other is None:
        return False
    squares_R = mean_squares(right, other)[np.flatnonzero(batch.real)]
    floor_R = np.concatenate([subject.floor(tokens_T) for tokens_T in batch.sequences])
    return bool((np.sqrt(squares_R) > FAR * LIMIT_PAIR * floor_R).any())


def _without_positions(given: _Runs | None, bare: _Runs, counted: bool, said: str) -> Finding:
    """With a mask alone the port is wrong: is it that it does not derive positions from it?

    Where other mistakes would do the same to these weights (a norm over two channels hides what is
    attended to), it is this one that a port is taken to make, because it is no fault.
    """
    floors = bare.agreement.floors
    if not counted:
        return bare.failed("with a mask alone, ")
    if given is None:
        why = f"the port does not derive positions from the mask, and takes none: {COUNTED}"
        named = naming("padding-positions-counted")
        return bare.agreement.failed(LAW, why, named, derives_positions=False)
    trap = f"without position_ids {COUNTED}: logits are off by {floors:.3g} noise floors; "
    finding = given.agreement.passed(LAW, said, derives_positions=False, without_positions=floors)
    return finding.saying(after=f"; {trap}pass position_ids")


def padded_batches(subject: Subject) -> list[Padded]:
    """Sequences of several lengths in one batch, twice: with zeros and with other tokens in front.

    The first one has some padding, so that its mask or positions do not fit the others.
    """
    width = min(WIDTH, max(2, subject.config.n_ctx - 1))
    lengths = [max(1, n) for n in (width // 2, width, 1, width - 3)]
    tokens = subject.tokens(len(lengths), width)
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    other = subject.other_tokens(tokens)
    return [
        Padded(np.where(mask, tokens, filling), mask.astype(np.int64))
        for filling in (np.zeros_like(tokens), other)
    ]


class _Runs:
    """Padded batches, run in one way, against each of their sequences alone."""

    def __init__(
        self, subject: Subject, batches: Sequence[Padded], call: Callable[[Padded], Floats]
    ) -> None:
        self._subject, self._batches = subject, batches
        self._got: list[list[Floats]] = []
        self._alone = [logits_of(subject, row[None])[0] for row in batches[0].sequences]
        self.agreement = Agreement(subject)
        for filling, batch in zip(("zeros", "other tokens"), batches, strict=True):
            what = f"padded with {filling}"
            said = f"{what}, and finite without padding"
            name = naming("padding-not-finite")
            made = call(batch)
            logits = checked(subject, made, batch.tokens, said, batch.real, infinite=name)
            rows = [row_TV[real] for row_TV, real in zip(logits, batch.real, strict=True)]
            self._got.append(rows)
            for i, (got, alone, tokens_T) in enumerate(
                zip(rows, self._alone, batch.sequences, strict=True)
            ):
                pads = batch.tokens.shape[1] - len(tokens_T)
                self.agreement.compare(f"row {i}, {pads} {what}", got, alone, tokens_T)

    def agrees_with(self, call: Callable[[Padded], Floats]) -> bool:
        """Whether another way to call the port has the same logits, to within rounding."""
        agreement = Agreement(self._subject)
        for batch, rows in zip(self._batches, self._got, strict=True):
            logits = checked(self._subject, call(batch), batch.tokens, "padded", batch.real)
            for row_TV, real, got, tokens_T in zip(
                logits, batch.real, rows, batch.sequences, strict=True
            ):
                agreement.compare("the same", got, row_TV[real], tokens_T)
        return agreement.holds()

    def explained_by(self, words: str) -> bool:
        """Whether this mistake has these logits, to within rounding; others may have them too."""
        named = [way for way in ways(self._batches[0]) if way.description == words]
        # Where what is in front does not show, one batch has nothing to add to the other.
        hidden = all(same_bits(*rows) for rows in zip(*self._got, strict=True))
        return bool(self._recognised(named, 1 if hidden else None))

    def failed(self, where: str = "") -> Finding:
        """What is wrong, by the mistake that the oracle would have to make as well."""
        found = self._recognised(ways(self._batches[0]))
        if not found.fitting:
            batch, config = self._batches[0], self._subject.config
            found = self._recognised(forms(batch, config.n_head, config.n_layer))
        if not found.fitting:
            found = self._recognised(
                [read_off(self._subject, self._cases, partial(weak, batch), WEAK, batch.right)]
            )
        message = found.description if found else f"{self._described()}: {found.description}"
        return self.agreement.failed(LAW, where + message, found.named)

    def _described(self) -> str:
        """What can be said of a mistake that is not known."""
        cases = self._cases
        squares_R = mean_squares(cases[0].got_RV, cases[1].got_RV)
        if (np.sqrt(squares_R) / cases[0].floor_R).max() > LIMIT_PAIR:
            return "the tokens of the padding matter: it is attended to"
        return "whatever tokens the padding has: it is the mask or the positions"

    def _recognised(self, mistakes: Iterable[Way], batches: int | None = None) -> Explained[Way]:
        """The mistake that the first ``batches`` of them show; all where None."""
        return recognise(self._subject, self._cases[:batches], mistakes, self._batches[0].right)

    @cached_property
    def _cases(self) -> list[Case]:
        """The batches as the oracle decodes them: the mistakes are those of masks and positions,
        which all batches share."""
        sequences = self._batches[0].sequences
        floor_R = np.concatenate([self._subject.floor(tokens_T) for tokens_T in sequences])
        return [
            Case(
                [batch.tokens.reshape(-1)],
                np.flatnonzero(batch.real),
                np.concatenate(got),
                np.concatenate(self._alone),
                floor_R,
            )
            for batch, got in zip(self._batches, self._got, strict=True)
        ]
