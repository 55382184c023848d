"""The laws of generation: what a port generates is what its own logits say.

The tokens that were generated are run through the port once more, as one plain sequence. Each must
be the likeliest where it was generated; of two that are nearly as likely, to within what noise does
to both, either may be taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.laws.agreement import LIMIT_PAIR, logits_of, refuting
from gpt_verify.laws.generation.hypotheses import Evidence, read
from gpt_verify.laws.law import a_whole_context, little
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.scores import limit_max
from gpt_verify.port import GENERATE, PADDED, PADDED_AT, Prompt
from gpt_verify.reference.config import Config

Tokens = NDArray[np.integer]
Floats = NDArray[np.floating]

#: Tokens of a prompt, and those that are generated, at most.
PROMPT, NEW = 7, 6
#: How often what was generated is made a prompt, until a token of a prompt is generated again.
ROUNDS = 3
#: Prompts among which one is looked for whose rows generate different tokens.
ATTEMPTS = 8
#: Different tokens that tell what a row has read.
SEVERAL = 3
#: A context of so many tokens is looked at in more rows.
SHORT_CONTEXT = 128
#: Tokens beyond the context that hang on what is read, after which no more prompts are tried.
TELLING = 4


@dataclass(frozen=True)
class Wrong:
    """A token that is not the likeliest.

    Attributes:
        row, step: where it was generated.
        got, expected: it, and the likeliest.
        margin: how much less likely it is, in logits.
        allowed: how much less it may be.
    """

    row: int
    step: int
    got: int
    expected: int
    margin: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"generated[{self.row}, {self.step}] = token {self.got}, should be token "
            f"{self.expected}, whose logit is greater by {self.margin:.3g} (a tie within "
            f"{self.allowed:.2g} may go either way)"
        )


@refuting("generation.greedy")
def check_greedy(subject: Subject) -> Iterator[Finding]:
    """A batch of rows of one length, which nothing ends; then what goes on from what it generated,
    until a token is the likeliest that the prompt has already, which some rules do not allow."""
    law, prompt = "generation.greedy", _prompt(subject, 2)
    found, got = _judged(subject, law, prompt, list(prompt.tokens))
    tokens = repeated = 0
    for left in range(ROUNDS, -1, -1):
        if found.status is Status.FAILED:
            break
        tokens, repeated = tokens + got.size, _repeated(prompt, got)
        longer = np.concatenate([prompt.tokens, got], axis=1)
        if repeated or not left or longer.shape[1] + NEW > subject.config.n_ctx:
            break
        prompt = Prompt(longer, NEW)
        found, got = _judged(subject, law, prompt, list(longer))
    if found.status is Status.PASSED:
        said = f"{tokens} tokens, the likeliest by the port's own logits; the prompt has "
        found = replace(found, message=f"{said}{repeated or 'none'} of them already")
    yield found


def _repeated(prompt: Prompt, got: Tokens) -> int:
    """How many tokens were generated that their row's prompt has."""
    return sum(int(np.isin(new, row).sum()) for row, new in zip(prompt.tokens, got, strict=True))


@refuting("generation.padded")
def check_padded(subject: Subject) -> Iterator[Finding]:
    """Rows of several lengths, padded on the left."""
    whole = _telling_prompt(subject)
    width = whole.tokens.shape[1]
    if width < 2:
        raise NotExamined("a context this short leaves no room for padding")
    lengths = np.array([width, max(1, width // 2), 1])
    mask = np.arange(width) >= width - lengths[:, None]
    tokens = np.where(mask, whole.tokens, 0)
    prompt = replace(whole, tokens=tokens, mask=mask.astype(np.int64))
    rows = [row[real] for row, real in zip(tokens, mask, strict=True)]
    found, _ = _judged(subject, "generation.padded", prompt, rows)
    if found.status is Status.FAILED and PADDED_AT in subject.offers:
        found = _as_its_mask_says(subject, prompt) or found
    if found.status is Status.FAILED and not _finite(subject, prompt):
        raise NotExamined("its logits of padded batches are not finite: see positions.padding")
    yield found


def _telling_prompt(subject: Subject) -> Prompt:
    """One after which the port generates several tokens: of a model that repeats one nothing tells
    what it has read."""
    prompts = []
    for attempt in range(ATTEMPTS):
        prompt = _prompt(subject, 3, attempt)
        got = subject.offers[GENERATE](prompt)
        prompts.append((sum(len(np.unique(row)) for row in got), -attempt, prompt))
        if prompts[-1][0] >= len(got) * min(SEVERAL, prompt.new):
            break
    return max(prompts)[-1]


def _as_its_mask_says(subject: Subject, prompt: Prompt) -> Finding | None:
    """Whether it generates what its own logits with a mask alone say; None where it does not.

    Of a port that takes positions, these may be counted from the first token where none are given,
    which is no fault (``positions.padding``).
    """
    padded = subject.offers.get(PADDED)
    assert prompt.mask is not None, "it is padded"
    if padded is None:
        return None
    got = subject.offers[GENERATE](prompt)
    if got.shape != (len(prompt.tokens), prompt.new):
        return None
    tokens, width = np.concatenate([prompt.tokens, got], axis=1), prompt.tokens.shape[1]
    mask = np.concatenate([prompt.mask, np.ones_like(got)], axis=1)
    logits = padded(tokens[:, :-1], mask[:, :-1])[:, width - 1 :]
    for row, real in enumerate(mask[:, :-1] == 1):
        sequence = tokens[row, :-1][real]
        first = len(sequence) - prompt.new
        if _unlikely(subject, row, sequence, first, logits[row], got[row]) is not None:
            return None
    said = f"{got.size} tokens, the likeliest by the port's own logits with a mask alone"
    trap = "they are not those that each row has alone: see positions.padding"
    return Finding("generation.padded", Status.PASSED, f"{said}; {trap}")


def _finite(subject: Subject, prompt: Prompt) -> bool:
    """Whether its logits are where it generates."""
    padded = subject.offers.get(PADDED)
    if padded is None or prompt.mask is None:
        return True
    logits = padded(prompt.tokens, prompt.mask)
    return bool(np.isfinite(logits[prompt.mask == 1]).all())


@refuting("generation.end")
def check_end(subject: Subject) -> Iterator[Finding]:
    """A token that one row would generate, and the other would not, ends the one."""
    law = "generation.end"
    prompt, end, row = _ending(subject)
    alone = replace(prompt, tokens=prompt.tokens[row : row + 1], end=end)
    for batch in (alone, replace(prompt, end=end)):
        got = subject.offers[GENERATE](batch)
        for row, tokens_T in enumerate(batch.tokens):
            what = _ended(subject, batch, row, tokens_T, got[row])
            if what is not None:
                yield what
                return
    yield Finding(law, Status.PASSED, f"token {end} ends a row where it is generated, and no other")


def _ending(subject: Subject) -> tuple[Prompt, int, int]:
    """A prompt of two rows, a token, and the row that it ends before the last step.

    Most models soon repeat one token, the same in both rows; then nothing shows who ends the other
    row. Without a prompt that tells, the middle token of the first row.
    """
    found: tuple[Prompt, int, int] | None = None
    for attempt in range(ATTEMPTS):
        prompt = _prompt(subject, 2, attempt)
        free = subject.offers[GENERATE](prompt)
        if free.shape != (2, prompt.new):
            raise NotExamined("it does not generate as many tokens as it is asked for")
        for row, other in ((0, 1), (1, 0)):
            for token in free[row, :-1]:
                if token not in free[other]:
                    return prompt, int(token), row
        found = found or (prompt, int(free[0, prompt.new // 2]), 0)
    assert found is not None, "there is one attempt at least"
    return found


def _ended(
    subject: Subject, prompt: Prompt, row: int, tokens_T: Tokens, got: Tokens
) -> Finding | None:
    """What is wrong with where a row ends; None where nothing is.

    What ended it may be left out; then it would have been the next token.
    """
    law, end = "generation.end", prompt.end
    assert end is not None, "the prompt has an end"
    at = np.flatnonzero(got == end)
    part = got[: int(at[0]) + 1] if len(at) else got
    if len(prompt.tokens) == 1 and len(part) < len(got):
        what = f"{len(got)} tokens are generated, should be {len(part)}: token {end} ends the row"
        return Finding(law, Status.FAILED, what, named=naming("generation-past-end"))
    wrong = _wrong(subject, row, tokens_T, part)
    if wrong is not None and wrong.expected != end:
        return Finding(law, Status.FAILED, f"with an end, {wrong}")
    if wrong is not None or len(at) or len(part) == prompt.new:
        return None
    if _wrong(subject, row, np.concatenate([tokens_T, part]), np.array([end])) is None:
        return None
    what = f"row {row} ends after {len(part)} tokens, without token {end}, which is to end it"
    several = len(prompt.tokens) > 1
    return Finding(
        law, Status.FAILED, what, named=naming("generation-ends-with-first" if several else None)
    )


def takes(config: Config) -> int:
    """Bytes of the law of the limit, which only a table of positions has."""
    return little(config) if config.own is not None else a_whole_context(config)


@refuting("generation.limit")
def check_limit(subject: Subject) -> Iterator[Finding]:
    """One token within the context, and some beyond."""
    law, n_ctx = "generation.limit", subject.config.n_ctx
    if subject.config.own is not None:
        raise NotExamined("positions of its family have no end")
    if subject.port.device != "cpu":  # elsewhere a position that does not exist ends the process
        raise NotExamined("a token beyond the context is tried on the CPU only")
    if n_ctx < 2:
        raise NotExamined("a context of one token has no prompt and no next token")
    short = n_ctx <= SHORT_CONTEXT
    rows, new, tries = (2, NEW, 24) if short else (1, 4, 6)
    generate, told = subject.offers[GENERATE], 0
    for attempt in range(tries):
        key = (69, attempt) if attempt else (69,)
        prompt = Prompt(subject.tokens(rows, n_ctx - 1, *key), new)
        try:
            got = generate(prompt)
        except NotExamined:
            raise
        except Exception as error:
            said = f"refused beyond {n_ctx} tokens: {type(error).__name__}"
            yield Finding(law, Status.PASSED, said)
            return
        if not got.shape[1]:
            raise NotExamined("it generates nothing where one more token fits in the context")
        for row, tokens_T in enumerate(prompt.tokens):
            wrong = _beyond(subject, row, tokens_T, got[row])
            if wrong is not None:
                yield Finding(law, Status.FAILED, wrong)
                return
            told += _telling(subject, tokens_T, got[row])
        if got.shape[1] <= 2:  # the second is made of the whole context
            yield Finding(law, Status.PASSED, f"stops beyond {n_ctx} tokens")
            return
        if told >= TELLING:
            break
    if not told:
        raise NotExamined("what it generates beyond the context is the same from other tokens")
    yield Finding(
        law,
        Status.PASSED,
        f"goes on from the last tokens beyond {n_ctx} tokens, {told} of which one token less "
        "would change",
    )


def _telling(subject: Subject, prompt_T: Tokens, got: Tokens) -> int:
    """How many of the tokens beyond the context would be others, were one more token dropped.

    Most models soon repeat one token, whatever was before; that says nothing of what they read.
    """
    n_ctx, whole = subject.config.n_ctx, np.concatenate([prompt_T, got])
    told = 0
    for last in range(n_ctx + 1, len(whole)):
        fewer = whole[last - n_ctx + 1 : last]
        told += int(logits_of(subject, fewer[None])[0, -1].argmax()) != whole[last]
    return told


def _beyond(subject: Subject, row: int, prompt_T: Tokens, got: Tokens) -> str | None:
    """What is wrong with tokens that were generated at the end of the context; None for nothing."""
    n_ctx, whole = subject.config.n_ctx, np.concatenate([prompt_T, got])
    for step in range(len(got)):
        last = len(prompt_T) + step
        wrong = _wrong(subject, row, whole[max(0, last - n_ctx) : last], whole[last : last + 1])
        if wrong is not None:
            where = "within" if last < n_ctx else f"{last + 1 - n_ctx} beyond"
            return f"{where} a context of {n_ctx}: {replace(wrong, step=step)}"
    return None


def _prompt(subject: Subject, rows: int, attempt: int = 0) -> Prompt:
    n_ctx = subject.config.n_ctx
    if n_ctx < 2:
        raise NotExamined("a context of one token has no prompt and no next token")
    length = min(PROMPT, max(1, n_ctx // 2))
    key = (68, attempt) if attempt else (68,)
    return Prompt(subject.tokens(rows, length, *key), min(NEW, n_ctx - length))


def _judged(
    subject: Subject, law: str, prompt: Prompt, rows: list[Tokens]
) -> tuple[Finding, Tokens]:
    """Every token that was generated, row by row; and these tokens."""
    got = subject.offers[GENERATE](prompt)
    evidence = Evidence(subject, prompt, rows, got)
    if got.shape != (len(rows), prompt.new):
        what = f"{list(got.shape)} tokens are generated, should be {[len(rows), prompt.new]}"
        return _failed(law, what, evidence), got
    for row, tokens_T in enumerate(rows):
        wrong = _wrong(subject, row, tokens_T, got[row])
        if wrong is not None:
            return _failed(law, str(wrong), evidence), got
    said = f"{got.size} tokens, the likeliest by the port's own logits"
    return Finding(law, Status.PASSED, said), got


def _failed(law: str, what: str, evidence: Evidence) -> Finding:
    """With what explains it."""
    found = read(evidence)
    details = {} if found.follows is None else {"follows": found.follows}
    words = f"{what}: {found.words}"
    return Finding(law, Status.FAILED, words, named=found.named, details=details)


def _wrong(subject: Subject, row: int, before_T: Tokens, new: Tokens) -> Wrong | None:
    """The first token of a row that is not the likeliest; None where all are."""
    n_vocab = subject.config.n_vocab
    whole = np.concatenate([before_T, new])
    for step, token in enumerate(new):
        if not 0 <= token < n_vocab:
            return Wrong(row, step, int(token), -1, float("inf"), 0.0)
    logits = logits_of(subject, whole[None, :-1])[0, len(before_T) - 1 :]
    return _unlikely(subject, row, whole[:-1], len(before_T) - 1, logits, new)


def _unlikely(
    subject: Subject, row: int, tokens_T: Tokens, first: int, logits: Floats, new: Tokens
) -> Wrong | None:
    """The first of these tokens that is not the likeliest by these logits, float[N, V], of the
    positions from ``first`` on; None where all are."""
    logits = logits.astype(np.float64)
    if np.array_equal(logits.argmax(axis=-1), new):
        return None
    measured = subject.measured(tokens_T.astype(np.int64), first)
    for step, (token, logits_V) in enumerate(zip(new, logits, strict=True)):
        best = int(logits_V.argmax())
        margin = float(logits_V[best] - logits_V[token])
        noise = measured.rms_T[step] * (measured.token_V[best] + measured.token_V[token])
        allowed = LIMIT_PAIR * limit_max(subject.config.n_vocab) * float(noise)
        if margin > allowed:
            return Wrong(row, step, int(token), best, margin, allowed)
    return None
