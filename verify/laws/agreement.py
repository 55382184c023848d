"""Two ways to the same logits: same bits, within rounding, or apart.

Most laws of this package compare a port with itself: with a cache and without, in a batch and
alone, padded and not. Engines choose their kernels by shape, so that the bits may differ where both
are right; how far, is measured in noise floors at each position. There a single logit may be off by
as much more than the root mean square as the largest of so many is (``limit_max``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Named, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.floor import least_floor
from gpt_verify.graph.tiles import TILE_ELEMENTS
from gpt_verify.laws.subject import Subject, same_bits
from gpt_verify.numerics.scores import limit_max

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

#: Each of two runs may be off by the limit, in directions of its own.
LIMIT_PAIR = math.sqrt(2.0) * LIMIT_FLOORS


class Malformed(Exception):
    """What a port returned is no logits; the message says why.

    Args:
        words: the message.
        named: what that is, where the law knows it.
    """

    def __init__(self, words: str, named: Named | None = None) -> None:
        super().__init__(words)
        self.named = named


def refuting(
    law: str,
) -> Callable[[Callable[[Subject], Iterable[Finding]]], Callable[[Subject], list[Finding]]]:
    """Make a check whose port returns no logits a failure of that law."""

    def wrap(check: Callable[[Subject], Iterable[Finding]]) -> Callable[[Subject], list[Finding]]:
        @wraps(check)
        def checked(subject: Subject) -> list[Finding]:
            try:
                return list(check(subject))
            except Malformed as e:
                return [Finding(law, Status.FAILED, str(e), named=e.named)]

        return checked

    return wrap


def logits_of(subject: Subject, tokens_BT: Tokens, keep: bool = True) -> Floats:
    """A plain run of the port: [B, T, V], of the right shape and finite.

    Args:
        keep: a copy; otherwise the port's own memory, to be looked at before it runs again.
    """
    what = f"of {tokens_BT.shape[1]} tokens"
    return checked(subject, subject.port.logits(tokens_BT), tokens_BT, what, keep=keep)


#: Positions at the beginning of a whole context, and at its end, whose logits laws share.
BEGINNING, END = 8, 2
_WHOLE = "ends of a whole context"


def whole_context(subject: Subject) -> tuple[Floats, Floats]:
    """The logits of the first and of the last positions of ``tokens(1, n_ctx)``, [n, V] each.

    The most expensive run that laws ask for: made once, and its ends alone are kept.
    """
    if _WHOLE not in subject.memo:
        remember_ends(
            subject, logits_of(subject, subject.tokens(1, subject.config.n_ctx), False)[0]
        )
    first_TV, last_TV = subject.memo[_WHOLE]
    return first_TV, last_TV


def remember_ends(subject: Subject, logits_TV: Floats) -> None:
    """A law that ran the whole context anyway leaves its ends to the others."""
    if len(logits_TV) == subject.config.n_ctx:
        subject.memo[_WHOLE] = logits_TV[:BEGINNING].copy(), logits_TV[-END:].copy()


def checked(
    subject: Subject,
    logits_BTV: Floats,
    tokens_BT: Tokens,
    what: str,
    where: NDArray[np.bool_] | None = None,
    keep: bool = True,
    infinite: Named | None = None,
) -> Floats:
    """A copy of what a port returned, because it may use its memory again.

    Args:
        where: bool[B, T], the positions that are looked at; all where None.
        keep: whether it is copied.
        infinite: the name of what makes numbers that are not finite, where the law knows it.

    Raises:
        Malformed: a wrong shape or dtype, or something that is not finite.
    """
    shape = (*tokens_BT.shape, subject.config.n_vocab)
    if logits_BTV.shape != shape:
        raise Malformed(f"logits {what} have shape {list(logits_BTV.shape)}, not {list(shape)}")
    if not np.issubdtype(logits_BTV.dtype, np.floating):
        raise Malformed(f"logits {what} have dtype {logits_BTV.dtype}, not a floating-point type")
    bad = np.isfinite(logits_BTV)
    np.logical_not(bad, out=bad)
    if where is not None:
        bad &= where[..., None]
    if bad.any():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), shape))
        index = ", ".join(map(str, at))
        raise Malformed(f"logits[{index}] = {logits_BTV[at]} {what}: not a finite number", infinite)
    return np.array(logits_BTV) if keep else logits_BTV


@dataclass(frozen=True)
class Apart:
    """Where two versions of the same logits differ most.

    Attributes:
        what: the way to the first version.
        position, token: index of the largest difference at the worst position.
        got, expected: the two values there.
        floors: how far they are apart at that position: RMS over the vocabulary, or the largest
            difference divided by what the largest of so many may be, whichever is more.
        first_wrong: the first position that is beyond the limit, or None.
    """

    what: str
    position: int
    token: int
    got: float
    expected: float
    floors: float
    first_wrong: int | None

    def __str__(self) -> str:
        return (
            f"logits[{self.position}, {self.token}] = {self.got:.9g}, should be "
            f"{self.expected:.9g} ({self.what}; {self.floors:.3g} noise floors)"
        )


class Agreement:
    """Gathers comparisons of one law."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.compared = self.unequal = 0
        self.worst: Apart | None = None

    def compare(
        self, what: str, got_TV: Floats, expected_TV: Floats, tokens_T: Tokens, first: int = 0
    ) -> Floats:
        """How many floors two versions are apart, [T], at the positions from ``first`` on."""
        self.compared += 1
        if same_bits(got_TV, expected_TV):
            return np.zeros(len(got_TV))
        self.unequal += 1
        floors_T = self._floors(got_TV, expected_TV, tokens_T, first)
        at = int(np.argmax(floors_T))
        if self.worst is None or floors_T[at] > self.worst.floors:
            got, expected = got_TV[at].astype(np.float64), expected_TV[at].astype(np.float64)
            token = int(np.argmax(np.abs(got - expected)))
            wrong = np.flatnonzero(floors_T > LIMIT_PAIR)
            self.worst = Apart(
                what,
                first + at,
                token,
                float(got[token]),
                float(expected[token]),
                float(floors_T[at]),
                first + int(wrong[0]) if len(wrong) else None,
            )
        return floors_T

    def _floors(self, got_TV: Floats, expected_TV: Floats, tokens_T: Tokens, first: int) -> Floats:
        """The same of two that are not equal; of a large model ``at_most``, if that is enough."""
        if self._subject.large:
            floors_T = at_most(self._subject, got_TV, expected_TV)
            if floors_T.max() <= LIMIT_PAIR:
                return floors_T
        squares_T = mean_squares(got_TV, expected_TV)
        floors_T = self._subject.position_floors(squares_T, tokens_T, first)
        if not squares_T.any():
            return floors_T
        by_token_V = self._subject.measured(tokens_T, first).token_V
        largest_T = _largest(got_TV, expected_TV, by_token_V) / limit_max(got_TV.size)
        alone_T = self._subject.position_floors(largest_T**2, tokens_T, first)
        return np.maximum(floors_T, alone_T)

    @property
    def floors(self) -> float:
        """The largest distance at any position."""
        return 0.0 if self.worst is None else self.worst.floors

    def holds(self) -> bool:
        """Everything so far is within the limit."""
        return self.floors <= LIMIT_PAIR

    def passed(self, law: str, what: str, **details: object) -> Finding:
        """``what`` was compared, and how equal it was."""
        assert self.compared, f"{law} compared nothing"
        if not self.unequal:
            words = "same bits"
        else:
            words = f"within rounding, at most {self.floors:.2g} noise floors apart"
        details |= {"comparisons": self.compared, "same_bits": self.compared - self.unequal}
        message = f"{what}: {words}"
        return Finding(law, Status.PASSED, message, None, self.floors, LIMIT_PAIR, details)

    def failed(self, law: str, why: str, named: Named | None = None, **details: object) -> Finding:
        """The worst difference, where it first shows, and what it comes from."""
        apart = self.worst
        assert apart is not None, f"{law} failed without a difference"
        message = f"{apart}; {why}"
        details |= {"comparisons": self.compared, "first_wrong": apart.first_wrong}
        return Finding(
            law,
            Status.FAILED,
            message,
            None,
            apart.floors,
            LIMIT_PAIR,
            named=named,
            details=details,
        )


def at_most(subject: Subject, got_TV: Floats, expected_TV: Floats) -> Floats:
    """How many floors two versions of the same logits are apart at most, [T].

    Each floor is taken for no more than the rounding of the last product of logits of this size,
    which it is never below (``gpt_verify.graph.floor.least_floor``).
    """
    apart = [
        (np.mean(d**2, axis=-1), np.max(np.abs(d), axis=-1))
        for d in _differences(got_TV, expected_TV)
    ]
    squares_T, largest_T = (np.concatenate(found) for found in zip(*apart, strict=True))
    furthest_T = np.maximum(np.sqrt(squares_T), largest_T / limit_max(got_TV.size))
    # The smaller of the two: one that is wrong may be of any size.
    size_T = np.minimum(mean_squares(got_TV), mean_squares(expected_TV))
    least_T = least_floor(subject.config, subject.precision, size_T)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(furthest_T > 0, furthest_T / least_T, 0.0)


def mean_squares(a_TV: Floats, b_TV: Floats | None = None) -> Floats:
    """Mean over the vocabulary of the squared difference, [T], a few rows at a time; without a
    second version of the logits, of their own squares."""
    return np.concatenate([np.mean(d**2, axis=-1) for d in _differences(a_TV, b_TV)])


def _largest(a_TV: Floats, b_TV: Floats, by_token_V: Floats) -> Floats:
    """The largest difference over the vocabulary, [T], each relative to its token's noise."""
    parts = [np.max(np.abs(d) / by_token_V, axis=-1) for d in _differences(a_TV, b_TV)]
    return np.concatenate(parts)


def _differences(a_TV: Floats, b_TV: Floats | None) -> Iterator[Floats]:
    step = max(1, TILE_ELEMENTS // a_TV.shape[-1])
    for i in range(0, len(a_TV), step):
        part = a_TV[i : i + step].astype(np.float64)
        if b_TV is not None:
            part -= b_TV[i : i + step]
        yield part
