"""The law of the lengths: the logits of some tokens do not hang on how many follow.

The inputs of a run have a few lengths, at which kernels change. A port that is wrong at one other
length is right in all of them. It is compared with itself, which costs no reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gpt_verify.findings import Finding, naming
from gpt_verify.laws.agreement import LIMIT_PAIR, Agreement, logits_of, refuting
from gpt_verify.laws.causality.check import LAW as CAUSALITY
from gpt_verify.laws.law import a_whole_context
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.draws import FOR_POSITIONS
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count
from gpt_verify.text import listing

LAW = "lengths"
#: Where a whole context costs more than ``FOR_POSITIONS`` multiplications, so many tokens of it
#: take its place: that of the whole is held to the reference by the law of the positions.
LARGE = 256
#: Other sequences of a length at which one sequence alone is wrong.
OTHERS = 3


def takes(config: Config) -> int:
    """Bytes of this law."""
    return a_whole_context(replace(config, n_ctx=longest(config)))


def longest(config: Config) -> int:
    """Tokens of the sequence whose beginnings are run alone."""
    large = config.n_ctx * parameter_count(config) > FOR_POSITIONS
    return min(LARGE, config.n_ctx) if large else config.n_ctx


def chosen(subject: Subject, whole: int) -> list[int]:
    """The shortest ones, and some that are drawn: each take half of the tokens that are afforded.

    As many tokens are afforded as take ``FOR_POSITIONS`` multiplications, and twice the longest
    sequence in any case.
    """
    afforded = max(2 * whole, FOR_POSITIONS // parameter_count(subject.config))
    found, spent = [], 0
    every = [*range(1, whole)]
    while every and spent + every[0] <= afforded / 2:
        spent += every[0]
        found.append(every.pop(0))
    drawn = subject.rng(whole, 31).permutation(every)
    for length in drawn.tolist():
        if spent + length > afforded:
            break
        spent += length
        found.append(length)
    return sorted(found)


@refuting(LAW)
def check_lengths(subject: Subject) -> Iterator[Finding]:
    """The beginnings of one sequence alone, and in the whole of it."""
    if subject.config.n_ctx == 1:
        raise NotExamined("a context of one token has one length")
    if CAUSALITY in subject.memo:
        raise NotExamined("what comes later changes the logits")
    whole = longest(subject.config)
    tokens = subject.tokens(1, whole)
    whole_TV = logits_of(subject, tokens)[0]
    agreement, tried, wrong = Agreement(subject), chosen(subject, whole), []
    for length in tried:
        got_TV = logits_of(subject, tokens[:, :length], keep=False)[0]
        words = f"{length} token{'s' * (length > 1)} alone"
        floors_T = agreement.compare(words, got_TV, whole_TV[:length], tokens[0])
        if floors_T.max() > LIMIT_PAIR:
            wrong.append(length)
        del got_TV  # large; the port may now make the next in its place
    short = next((n for n, at in enumerate(tried, 1) if at != n), len(tried) + 1) - 1
    if agreement.holds():
        drawn = len(tried) - short
        what = f"every length up to {short}"
        what += f" and {drawn} drawn ones" if drawn else ""
        yield agreement.passed(LAW, f"{what} alone, and at the beginning of {whole}")
        return
    if len(wrong) == len(tried):
        why = f"wrong at all {len(tried)} lengths that were tried, or in the whole"
    else:
        right = len(tried) - len(wrong)
        why = f"wrong at length {listing(wrong)}, and right at {right} other lengths"
    named = None
    if len(wrong) == 1:
        again = Agreement(subject)
        got_TV = logits_of(subject, tokens[:, : wrong[0]], keep=False)[0]
        again.compare("again", got_TV, whole_TV[: wrong[0]], tokens[0])
        if again.holds():
            why += "; right when it is asked for again"
        elif _others_agree(subject, whole, wrong[0]):
            why += "; right with other tokens: what is rounded in steps may fall to either side"
        else:
            named = naming("lengths-one")
    yield agreement.failed(LAW, why, named, wrong=wrong)


def _others_agree(subject: Subject, whole: int, length: int) -> bool:
    """Whether the law holds at this length for one of some other sequences.

    A path of one length is taken by all of them. A port that rounds its values in coarse steps may
    differ from itself by a step, wherever a kernel of another shape rounds to the other side.
    """
    for key in range(OTHERS):
        other, agreement = subject.tokens(1, whole, 32, key), Agreement(subject)
        whole_TV = logits_of(subject, other)[0]
        got_TV = logits_of(subject, other[:, :length], keep=False)[0]
        agreement.compare("other tokens", got_TV, whole_TV[:length], other[0])
        if agreement.holds():
            return True
    return False
