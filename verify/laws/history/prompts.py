"""The law of prompts: what a port keeps of one prompt is not taken for another's.

Servers keep keys and values of earlier prompts, and reuse those of a common beginning. A port that
takes too little for the same (a hash of the first tokens of a block, a length, a place in memory)
is right on every prompt that is unlike all others, and so on all other inputs of a run. Its second
prompt cannot be compared with itself: it is compared with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Named, Status, naming
from gpt_verify.laws.agreement import (
    LIMIT_PAIR,
    Agreement,
    checked,
    logits_of,
    mean_squares,
    refuting,
)
from gpt_verify.laws.logits.check import LogitsComparison
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.draws import FOR_POSITIONS
from gpt_verify.numerics.weights import Widened
from gpt_verify.port import LAST
from gpt_verify.reference.model import logits as reference_logits
from gpt_verify.reference.weights import parameter_count

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

LAW = "history.prompts"
#: Tokens that two prompts have in common at their beginning, and tokens of a prompt.
COMMON, LENGTH = (4, 8, 16, 64), 72
#: Of a model whose reference takes long, that many tokens of the shorter ones.
SHORTER = 24
_WHATEVER = "the logits of a prompt are wrong without an earlier one, too"


@dataclass(frozen=True)
class Prompts:
    """Two prompts, the second of which is asked for right after the first.

    Attributes:
        words: what they have in common.
        first_T, second_T: the tokens of one row, of the same length.
        common: how many tokens they have in common at their beginning.
        third_T: asked for before both; None where there is none.
    """

    words: str
    first_T: Tokens
    second_T: Tokens
    common: int = 0
    third_T: Tokens | None = None


@refuting(LAW)
def check_prompts(subject: Subject) -> Iterator[Finding]:
    """Each prompt after one that is much like it."""
    if subject.config.n_vocab == 1:
        raise NotExamined("a vocabulary of one token has one prompt of each length")
    found = _much_alike(subject)
    if found.status is Status.PASSED:
        found = _same_memory(subject) or found
    yield found


def pairs(subject: Subject) -> list[Prompts]:
    """Prompts that begin alike, that end alike, and that have the same tokens in another order."""
    n_ctx, found = subject.config.n_ctx, []
    large = len(COMMON) * LENGTH * parameter_count(subject.config) > FOR_POSITIONS
    for common in COMMON:
        length = min(n_ctx, SHORTER if large and common < SHORTER else LENGTH)
        if common < length:
            first_T = subject.tokens(1, length, 114, common)[0]
            second_T = first_T.copy()
            second_T[common:] = subject.other_tokens(first_T[common:], 115)
            words = f"another one with the same first {common} tokens"
            found.append(Prompts(words, first_T, second_T, common))
    first_T = subject.tokens(1, min(n_ctx, SHORTER), 114)[0]
    second_T = first_T.copy()
    second_T[:1] = subject.other_tokens(first_T[:1], 115)
    found.append(Prompts("another one that differs in its first token", first_T, second_T))
    if (unequal := np.flatnonzero(first_T[:-1] != first_T[1:])).size:
        at, second_T = int(unequal[unequal.size // 2]), first_T.copy()
        second_T[[at, at + 1]] = second_T[[at + 1, at]]
        words = "another one with two of its tokens exchanged"
        found.append(Prompts(words, first_T, second_T, at))
    if (half := len(first_T) // 2 // 4 * 4) > 0:
        begun_T, other_T = (subject.tokens(1, len(first_T), 114, key)[0] for key in (1, 2))
        second_T = np.concatenate([begun_T[:half], other_T[half:]])
        words = "two other ones, as which it begins and goes on"
        found.append(Prompts(words, begun_T, second_T, half, third_T=other_T))
    return found


def _much_alike(subject: Subject) -> Finding:
    comparison = LogitsComparison(subject.config, subject.weights, subject.precision)
    every, answers = pairs(subject), []
    for prompts in every:
        if prompts.third_T is not None:
            _answer(subject, prompts.third_T)
        first_V, at = _answer(subject, prompts.first_T)
        second_V, at = _answer(subject, prompts.second_T)
        comparison.begin()
        comparison.add_again(prompts.second_T[None], second_V[None], at=at)
        answers.append((prompts, first_V, second_V, at))
    (found,) = comparison.findings()
    if found.status is Status.PASSED:
        words = ", ".join(
            prompts.words.removeprefix("another one ").removeprefix("two other ones, ")
            for prompts in every
        )
        return _as_own(found).saying(before=f"right after another prompt ({words}): ")
    return _refuted(subject, answers, found)


def _answer(subject: Subject, tokens_T: Tokens) -> tuple[Floats, list[int] | None]:
    """The logits of one call, [n, V], and of which positions they are; all where None."""
    tokens = tokens_T[None]
    if not subject.port.by_prefixes:
        return logits_of(subject, tokens)[0], None
    last = subject.offers[LAST](tokens)
    return checked(subject, last[:, None], tokens[:, -1:], "of the last position")[0], [
        tokens.size - 1
    ]


Answer = tuple[Prompts, Floats, Floats, list[int] | None]


def _refuted(subject: Subject, answers: list[Answer], found: Finding) -> Finding:
    """Which prompt is wrong; and whether it is so because of the one before.

    Raises:
        NotExamined: the logits are wrong elsewhere in the run, and here whatever was before.
    """
    prompts, first_V, _, at = answers[0]
    own = _compared(subject, prompts.first_T, first_V, at)
    if own.status is not Status.PASSED:
        if not subject.logits_right:
            raise NotExamined(_WHATEVER)
        return _as_own(own).saying(before="unlike those of the inputs of the run: ")
    for prompts, _, second_V, at in answers:
        finding = _compared(subject, prompts.second_T, second_V, at)
        if finding.status is Status.FAILED:
            why, named = _why(subject, prompts, second_V, at)
            if named is None and subject.logits_right is False:
                raise NotExamined(_WHATEVER)
            made = replace(_as_own(finding), named=named)
            return made.saying(before=f"right after {prompts.words}: ", after=f"; {why}")
    if subject.logits_right is False:
        raise NotExamined(_WHATEVER)
    return _as_own(found)


def _as_own(finding: Finding) -> Finding:
    """What a comparison of logits found, as a finding of this law."""
    return replace(finding, id=LAW, site=None, named=None, details={})


def _compared(subject: Subject, tokens_T: Tokens, got_V: Floats, at: list[int] | None) -> Finding:
    """The logits of one prompt beside the reference's."""
    comparison = LogitsComparison(subject.config, subject.weights, subject.precision)
    comparison.begin()
    comparison.add_again(tokens_T[None], got_V[None], at=at)
    (finding,) = comparison.findings()
    return finding


def _why(
    subject: Subject, prompts: Prompts, got_V: Floats, at: list[int] | None
) -> tuple[str, Named | None]:
    """Whether what was kept of the first prompt was taken for the second's."""
    named = naming("history-prompt-stale")
    rows = np.arange(len(prompts.second_T)) if at is None else np.array(at)
    for kept in _kept(prompts):
        spliced_T = np.concatenate([prompts.first_T[:kept], prompts.second_T[kept:]])
        if (spliced_T == prompts.second_T).all():
            continue
        exact_TV = reference_logits(Widened(subject.weights), subject.config, spliced_T)
        seen = rows >= kept
        if not seen.any():
            seen = rows >= 0  # the whole of the first prompt's
        squares = mean_squares(got_V[seen], exact_TV[rows[seen]])
        floors = subject.position_floors(squares, spliced_T, int(rows[seen][0]))
        if floors.max() <= LIMIT_PAIR:
            return f"the keys and values of the first {kept} tokens of that one are used", named
    other_T = subject.other_tokens(prompts.second_T, 116)
    _answer(subject, other_T)
    again_V, _ = _answer(subject, prompts.second_T)
    # Held to the limit that the first answer is beyond, and not by a little: the answers differ.
    apart = Agreement(subject)
    apart.compare("", again_V, got_V, prompts.second_T, int(rows[0]))
    own = _compared(subject, prompts.second_T, again_V, at)
    if own.status is Status.PASSED and not apart.holds():
        return "it is right after a prompt that is unlike it", named
    if _right_when_new(subject, prompts, at):
        return "of a port that is built anew it is right", named
    return "it is wrong after a prompt that is unlike it as well", None


def _right_when_new(subject: Subject, prompts: Prompts, at: list[int] | None) -> bool:
    """Whether another port, built as this one was, is right at once. Where it cannot be built
    again, or is the same, this proves nothing."""
    if subject.build is None:
        return False
    try:
        new = subject.build()
    except Exception:
        return False
    if new is subject.port:
        return False
    try:
        got_V, _ = _answer(replace(subject, port=new), prompts.second_T)
    except Exception:
        return False
    finally:
        new.close()
    return _compared(subject, prompts.second_T, got_V, at).status is Status.PASSED


def _kept(prompts: Prompts) -> list[int]:
    """How many tokens of the first prompt may be taken for the second's: likely numbers first."""
    length = len(prompts.first_T)
    return [n for n in range(length, prompts.common, -1) if n % 4 == 0 or n >= length - 1]


def _same_memory(subject: Subject) -> Finding | None:
    """Whoever keeps results by the memory in which the tokens lie finds another prompt there."""
    length = min(8, subject.config.n_ctx)
    one, other = subject.tokens(1, length, 117), subject.tokens(1, length, 118)
    logits_of(subject, one.copy())
    expected_TV = logits_of(subject, other.copy())[0]
    logits_of(subject, one)  # what is before is the same prompt, both times
    one[:] = other
    agreement = Agreement(subject)
    got_TV = logits_of(subject, one)[0]
    agreement.compare("in memory that held another prompt", got_TV, expected_TV, other[0])
    if agreement.holds():
        return None
    again = Agreement(subject)
    logits_of(subject, subject.tokens(1, length, 117))
    again.compare("", logits_of(subject, other.copy())[0], expected_TV, other[0])
    named = naming("history-same-memory" if again.holds() else None)
    return agreement.failed(LAW, "right in memory of its own", named)
