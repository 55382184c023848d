"""The law of the cache: a sequence decoded in pieces has the logits of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Named, naming
from gpt_verify.graph.decode import Before, right_positions
from gpt_verify.laws.agreement import (
    LIMIT_PAIR,
    Agreement,
    checked,
    logits_of,
    mean_squares,
    refuting,
    whole_context,
)
from gpt_verify.laws.cache.forms import forms
from gpt_verify.laws.cache.hypotheses import last_clipped, ways, window
from gpt_verify.laws.cache.positions_used import positions_used
from gpt_verify.laws.decoding import Case, Way, recognise
from gpt_verify.laws.explain import Explained
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.port import STEP
from gpt_verify.reference.weights import parameter_count

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]
Lengths = tuple[int, ...]

LAW = "cache"
#: Tokens of the sequence that is split in every way into two and into three: as many as the first
#: number, and no fewer than the second.
SHORT, SHORTEST = 8, 4
#: How many parameters are read at most (a step reads all of them) while a short sequence is split
#: in every way, and while a long one is decoded one by one, of which so many tokens are at least.
SPLIT_READS, READS, FEWEST = 4_000_000_000, 4_000_000_000, 32


#: Of two rows, the one whose cache each reads, where each reads the other's.
EXCHANGED = (1, 0)
#: Where the cache of a whole context is left for the law of the positions.
_FULL = "a full cache"


@dataclass(frozen=True)
class Decoded:
    """One sequence, decoded in pieces of these lengths."""

    lengths: Lengths
    tokens_T: Tokens
    got_TV: Floats
    expected_TV: Floats
    floors_T: Floats

    def case(self, subject: Subject) -> Case:
        """For recognising what went wrong."""
        cuts = np.cumsum(self.lengths)[:-1]
        pieces = np.split(self.tokens_T, cuts)
        rows = np.arange(len(self.tokens_T))
        floor_T = subject.floor(self.tokens_T)
        return Case(pieces, rows, self.got_TV, self.expected_TV, floor_T)


@refuting(LAW)
def check_cache(subject: Subject) -> Iterator[Finding]:
    """Short sequences split in every way, a long one token by token, and the last position."""
    n_ctx = subject.config.n_ctx
    if n_ctx == 1:
        raise NotExamined("a context of one token cannot be split")
    agreement = Agreement(subject)
    short = min(n_ctx, _affordable(parameter_count(subject.config)))
    splits = _splits(subject, agreement, short)
    if not agreement.holds():
        yield agreement.failed(LAW, *_named(subject, splits))
        return
    said = [f"{len(splits)} splits of {short} tokens"]
    del splits  # all their logits
    read = _two_rows(subject, agreement, short)
    if not agreement.holds():
        words = "one row alone is decoded as it should be: rows are mixed up"
        named = None
        if read == EXCHANGED:
            words += ", each reads the other's cache"
            named = naming("cache-rows-exchanged")
        elif read is not None:
            other = f"row {1 - read[0]} reads the cache of row {read[0]}"
            words += f", {other}"
            named = naming("cache-rows", words=other)
        elif not _alone_again(subject, short):
            words = (
                "what was decoded alone as it should be is not any more: it depends on what was "
            )
            words += "computed before"
        yield agreement.failed(LAW, words, named)
        return
    said.append("two rows at once")
    count = min(n_ctx, max(FEWEST, READS // parameter_count(subject.config)))
    if count > short:
        tokens = subject.tokens(1, count)
        whole_TV = logits_of(subject, tokens)[0]
        long = _compare(subject, agreement, tokens, (1,) * count, whole_TV)
        if not agreement.holds():
            yield agreement.failed(LAW, *_limited(subject, long))
            return
        del whole_TV, long
        said.append(f"{count} tokens one by one")
    if count < n_ctx:
        last = _last_positions(subject, agreement)
        if not agreement.holds():
            yield agreement.failed(LAW, *_clipped(subject, last()))
            return
        said.append(f"the last two of {n_ctx}")
    yield agreement.passed(LAW, ", ".join(said))


def full_cache(subject: Subject) -> object:
    """The port's cache after n_ctx tokens, for one use: the one that this law has left, or where
    there is none, one that is filled now."""
    if _FULL not in subject.memo:
        tokens = subject.tokens(1, subject.config.n_ctx)
        subject.memo[_FULL] = subject.offers[STEP](tokens, None)[1]
    return subject.memo.pop(_FULL)


def _affordable(parameters: int) -> int:
    """Tokens that can be split in every way."""
    steps = {n: sum(map(len, splits_of(n))) for n in range(SHORTEST, SHORT + 1)}
    return max(n for n in steps if n == SHORTEST or steps[n] * parameters <= SPLIT_READS)


def splits_of(n: int) -> list[Lengths]:
    """The whole in one call, every way into two and into three, and one by one."""
    found = {(n,): None, (1,) * n: None}
    for count in (2, 3):
        for cuts in combinations(range(1, n), count - 1):
            found[tuple(b - a for a, b in pairwise((0, *cuts, n)))] = None
    return list(found)


def _describe(lengths: Lengths) -> str:
    if len(lengths) > 3 and set(lengths) == {1}:
        return "decoded one by one"
    return "decoded as " + " + ".join(map(str, lengths))


def _decode(
    subject: Subject, tokens_BT: Tokens, lengths: Lengths, keep: bool = True
) -> Iterator[Floats]:
    """Logits of each piece, [B, n, V], made with the cache of those before it.

    Args:
        keep: copies; otherwise the port's own memory, to be looked at before it runs again.
    """
    step = subject.offers[STEP]
    cache = None
    for piece in np.split(tokens_BT, np.cumsum(lengths)[:-1], axis=1):
        logits, cache = step(piece, cache)
        logits = checked(subject, logits, piece, _describe(lengths), keep=keep)
        yield logits
        del logits  # of a whole context: large, while the next piece is computed
    if subject.config.keys.table and tokens_BT.shape == (1, subject.config.n_ctx):
        subject.memo[_FULL] = cache


def _splits(subject: Subject, agreement: Agreement, n: int) -> list[Decoded]:
    tokens = subject.tokens(1, n)
    whole_TV = logits_of(subject, tokens)[0]
    return [_compare(subject, agreement, tokens, lengths, whole_TV) for lengths in splits_of(n)]


def _compare(
    subject: Subject, agreement: Agreement, tokens: Tokens, lengths: Lengths, whole_TV: Floats
) -> Decoded:
    got_TV = np.concatenate(list(_decode(subject, tokens, lengths)), axis=1)[0]
    floors_T = agreement.compare(_describe(lengths), got_TV, whole_TV, tokens[0])
    return Decoded(lengths, tokens[0], got_TV, whole_TV, floors_T)


def _two_rows(subject: Subject, agreement: Agreement, n: int) -> tuple[int, int] | None:
    """Two rows at once. Where they are wrong: by which rows' caches they are decoded, if the tokens
    before the second call are those of one of the two; None where they are not."""
    tokens = subject.tokens(2, n)
    whole_BTV = logits_of(subject, tokens)
    halves = (n - n // 2, n // 2)
    for lengths in {halves, (1,) * n}:
        got_BTV = np.concatenate(list(_decode(subject, tokens, lengths)), axis=1)
        for row in range(2):
            what = f"row {row} of two, {_describe(lengths)}"
            agreement.compare(what, got_BTV[row], whole_BTV[row], tokens[row])
        if lengths == halves:
            halved_BTV = got_BTV
    if agreement.holds():
        return None
    first = halves[0]
    for read in (EXCHANGED, (0, 0), (1, 1)):
        mixed = np.concatenate([tokens[list(read), :first], tokens[:, first:]], axis=1)
        expected_BTV = logits_of(subject, mixed)
        squares = (mean_squares(halved_BTV[b, first:], expected_BTV[b, first:]) for b in range(2))
        floors = [subject.position_floors(s, mixed[b], first).max() for b, s in enumerate(squares)]
        if max(floors) <= LIMIT_PAIR:
            return read
    return None


def _alone_again(subject: Subject, n: int) -> bool:
    """Whether a single row is still decoded as it should be: of a port that keeps something from
    call to call it may not be."""
    agreement, tokens = Agreement(subject), subject.tokens(1, n)
    halves = (n - n // 2, n // 2)
    for _ in range(2):
        _compare(subject, agreement, tokens, halves, logits_of(subject, tokens)[0])
    return agreement.holds()


def _last_positions(subject: Subject, agreement: Agreement) -> Callable[[], Case]:
    """Most of a whole context in one call, then its last two tokens; for recognising what went
    wrong, which takes the floors."""
    n_ctx = subject.config.n_ctx
    tokens, lengths = subject.tokens(1, n_ctx), (n_ctx - 2, 1, 1)
    _, whole_TV = whole_context(subject)
    ends = []
    for piece_BTV in _decode(subject, tokens, lengths, keep=False):
        ends.append(piece_BTV[0, -1].copy())
        del piece_BTV  # the first is as large as the whole
    got_TV = np.stack(ends[-2:])
    agreement.compare(_describe(lengths), got_TV, whole_TV, tokens[0], n_ctx - 2)

    def case() -> Case:
        rows = np.array([n_ctx - 2, n_ctx - 1])
        return Case([tokens[0]], rows, got_TV, whole_TV, subject.floor(tokens[0], n_ctx - 2))

    return case


def _clipped(subject: Subject, last: Case) -> tuple[str, Named | None]:
    """Is it that the last position is taken for the one before?"""
    found = recognise(subject, [last], [last_clipped(subject.config.n_ctx)])
    return _explained(found, "shorter sequences are decoded as they should be")


def _named(subject: Subject, splits: Sequence[Decoded]) -> tuple[str, Named | None]:
    """Which mistake it is, where the oracle that makes it departs in the same way: in words, and
    by its name in the catalogue of faults."""
    n = len(splits[0].tokens_T)
    telling = {(n // 2, n - n // 2), (1, n - 1), (n - 1, 1), (1, n - 2, 1), (1,) * n}
    cases = [split.case(subject) for split in splits if split.lengths in telling]
    found = recognise(subject, cases, ways(subject.config.n_layer, n))
    if not found.fitting:
        found = recognise(subject, cases, positions_used(subject, cases))
    if not found.fitting:
        found = recognise(subject, cases, forms(subject.config.n_layer, subject.config.n_ctx))
    wrong = [split for split in splits if split.floors_T.max() > LIMIT_PAIR]
    where = _displaced(found.by, wrong) if found.by else ""
    return _explained(found, f"{len(wrong)} of {len(splits)} splits are wrong", where)


def _displaced(way: Way, wrong: Sequence[Decoded]) -> str:
    """The first position that is decoded at another one's place, if that is the mistake."""
    for split in wrong:
        before: Before = ()
        for length in split.lengths:
            asked, used = right_positions(before, length), way.positions(before, length)
            if (asked != used).any():
                at = int(np.argmax(asked != used))
                return f"position {asked[at]} is decoded at position {used[at]}: "
            before = (*before, length)
    return ""


def _limited(subject: Subject, long: Decoded) -> tuple[str, Named | None]:
    """A mistake that a short sequence does not show: is it that so many tokens are kept?"""
    first = int(np.argmax(long.floors_T > LIMIT_PAIR))
    rows, floor_T = np.arange(len(long.tokens_T)), subject.floor(long.tokens_T)
    case = Case([long.tokens_T], rows, long.got_TV, long.expected_TV, floor_T)
    # The first tokens that a window leaves out may be lost to no effect above the noise.
    windows = (window(first - i) for i in range(min(first, FEWEST)))
    tried = [*windows, last_clipped(subject.config.n_ctx)]
    found = recognise(subject, [case], tried)
    if not found.fitting:
        one_by_one = long.case(subject)
        found = recognise(subject, [one_by_one], forms(1, subject.config.n_ctx))
    return _explained(found, f"the first {first} tokens are decoded as they should be")


def _explained(found: Explained[Way], otherwise: str, where: str = "") -> tuple[str, Named | None]:
    """What is said of a failure, and the fault that it is; ``otherwise`` of one that is none."""
    if found.by is None:
        return f"{otherwise}: {found.description}", None
    return where + found.description, found.named
