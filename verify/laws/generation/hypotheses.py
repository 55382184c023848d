"""What a port may take for the likeliest token, by its own logits of something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Named, naming
from gpt_verify.laws.agreement import logits_of
from gpt_verify.laws.explain import explain
from gpt_verify.laws.subject import Subject
from gpt_verify.port import GENERATE, PADDED, PADDED_AT, STEP, STEP_PADDED, Prompt

#: A form whose words are read off the tokens.
CHOICE = "generation-choice"
#: Name → sentence that completes "the port …".
NAMES = {CHOICE: "chooses the next token by another rule than the likeliest"}
#: Tokens that are never taken, at most: more would explain anything.
FEW = 2

Tokens = NDArray[np.integer]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Evidence:
    """What a port generated.

    Attributes:
        subject: the port.
        prompt: what it was asked.
        rows: the prompts without padding.
        got: int[B, N].
    """

    subject: Subject
    prompt: Prompt
    rows: list[Tokens]
    got: Tokens

    def by(self, next_of: Callable[[int, Tokens, Tokens], Floats]) -> bool:
        """Whether every token is the likeliest by these logits, float[V], of a row, its prompt as
        it was handed over, and what was generated before."""
        prompts = self.prompt.tokens
        if self.got.shape != (len(self.rows), self.prompt.new):
            return False
        for row, got in enumerate(self.got):
            for step, token in enumerate(got):
                logits_V = next_of(row, prompts[row], got[:step])
                if int(np.argmax(logits_V)) != token:
                    return False
        return True

    def passed_over(self) -> list[tuple[Tokens, Tokens]]:
        """Of each token: the row before it, and what is likelier by the port's own logits."""
        found: list[tuple[Tokens, Tokens]] = []
        for tokens_T, got in zip(self.rows, self.got, strict=True):
            whole = np.concatenate([tokens_T, got])
            logits_TV = self.logits(whole[:-1])
            for step, token in enumerate(got):
                at = len(tokens_T) + step
                likelier = np.flatnonzero(logits_TV[at - 1] > logits_TV[at - 1, token])
                found.append((whole[:at], likelier))
        return found

    def logits(self, tokens_T: Tokens) -> Floats:
        """Of the port, plainly, [T, V]."""
        found: Floats = self.subject.port.logits(np.asarray(tokens_T, np.int64)[None])[0]
        return found


@dataclass(frozen=True)
class Reading:
    """What came of the evidence.

    Attributes:
        named: the fault.
        words: what is said of it.
        follows: the law whose failure this one follows from.
    """

    named: Named | None
    words: str
    follows: str | None = None


def read(evidence: Evidence) -> Reading:
    """What explains the tokens: the port's cache, or else a fault of generation.

    A cache that is wrong makes other tokens than the plain logits do, some of which a fault of
    generation would make as well; most models soon repeat one token. So do logits that are wrong,
    which are what the tokens are held to.
    """
    if _as_its_steps_say(evidence):
        return Reading(None, "its steps with a cache say the same: see cache", "cache")
    if evidence.subject.logits_right is False:
        return Reading(None, "its plain logits are wrong: see logits")
    found = explain(evidence, _MISTAKES)
    if not found.fitting and (words := _chosen(evidence)):
        return Reading(naming(CHOICE, words=words), words)
    return Reading(found.named, found.description)


def _chosen(evidence: Evidence) -> str:
    """By which rule the tokens are those that they are, where one tells; empty otherwise."""
    got, n_vocab = evidence.got, evidence.subject.config.n_vocab
    if got.shape != (len(evidence.rows), evidence.prompt.new) or got.min() < 0:
        return ""
    if got.max() >= n_vocab:
        return ""
    if _differs_from_itself(evidence):
        return "rows that are the same go on differently: tokens are drawn at random"
    if len(got) > 1 and (got == got[0]).all():
        return "every row goes on with the tokens of the first"
    over = evidence.passed_over()
    ranks = {len(likelier) for _, likelier in over}
    if len(ranks) == 1:
        return f"each is number {1 + ranks.pop()} of the likeliest"
    if words := _numbered(evidence, over) or _first_elsewhere(evidence, over):
        return words
    prompts = [row for row in evidence.rows for _ in range(evidence.prompt.new)]
    if all(np.isin(left, row).all() for row, (_, left) in zip(prompts, over, strict=True)):
        return "a token that the prompt has is passed over"
    if all(np.isin(left, before).all() for before, left in over):
        return "a token that was there before is passed over"
    never = np.unique(np.concatenate([left for _, left in over]))
    if len(never) <= FEW and not np.isin(never, got).any():
        tokens = "token" if len(never) == 1 else "tokens"
        listed = ", ".join(map(str, never))
        return f"{tokens} {listed} {'is' if len(never) == 1 else 'are'} passed over"
    return ""


def _numbered(evidence: Evidence, over: list[tuple[Tokens, Tokens]]) -> str:
    """The likeliest, whose number is counted from another one: of a part of the vocabulary."""
    got = evidence.got.ravel()
    best = [int(np.argmax(evidence.logits(before)[-1])) for before, _ in over]
    off = {b - int(g) for b, g in zip(best, got, strict=True) if b != g}
    if len(off) != 1 or (by := off.pop()) <= 0:
        return ""
    if any((b >= by) != (b != g) for b, g in zip(best, got, strict=True)):
        return ""
    return f"the likeliest, whose number is counted from {by} on in that part of the vocabulary"


def _first_elsewhere(evidence: Evidence, over: list[tuple[Tokens, Tokens]]) -> str:
    """The first of a padded prompt is the likeliest at another position than the last, and those
    that follow are right."""
    how, mask = evidence.subject.offers.get(PADDED), evidence.prompt.mask
    new = evidence.prompt.new
    if how is None or mask is None or any(len(left) for i, (_, left) in enumerate(over) if i % new):
        return ""
    logits_BTV = how(evidence.prompt.tokens, mask)
    width, count_B = mask.shape[1], mask.sum(axis=1)
    places = {
        "the number of its real tokens": count_B - 1,
        "the first of its real tokens": width - count_B,
        "the first position": np.zeros_like(count_B),
        "the one before the last": np.full_like(count_B, width - 2),
    }
    for words, at_B in places.items():
        read_B = np.argmax(logits_BTV[np.arange(len(mask)), at_B], axis=-1)
        if np.array_equal(read_B, evidence.got[:, 0]):
            return f"the first token of a padded prompt is read at {words}"
    return ""


def _differs_from_itself(evidence: Evidence) -> bool:
    """Whether two rows of one batch that are the same are gone on with by different tokens, and
    their logits are the same."""
    prompt = evidence.prompt
    mask = None if prompt.mask is None else np.repeat(prompt.mask, 2, axis=0)
    twice = replace(prompt, tokens=np.repeat(prompt.tokens, 2, axis=0), mask=mask)
    got = evidence.subject.offers[GENERATE](twice)
    if np.array_equal(got[::2], got[1::2]):
        return False
    logits = logits_of(evidence.subject, twice.tokens.astype(np.int64))
    return np.array_equal(logits[::2], logits[1::2])


def _as_its_steps_say(evidence: Evidence) -> bool:
    """Whether every token is the likeliest by the port's own steps with a cache."""
    prompt, mask = evidence.prompt, evidence.prompt.mask
    step, padded = evidence.subject.offers.get(STEP), evidence.subject.offers.get(STEP_PADDED)
    if (step if mask is None else padded) is None or prompt.new != evidence.got.shape[1]:
        return False
    new, cache = prompt.tokens, None
    for expected in evidence.got.T:
        if mask is None:
            assert step is not None
            logits_BNV, cache = step(new, cache)
        else:
            assert padded is not None
            logits_BNV, cache = padded(new, cache, mask)
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        if not np.array_equal(np.argmax(logits_BNV[:, -1], axis=-1), expected):
            return False
        new = expected[:, None]
    return True


@dataclass(frozen=True)
class _Mistake:
    """One that is made where tokens are generated."""

    fault: str
    description: str
    does: Callable[[Evidence], bool]

    def fits(self, evidence: Evidence) -> float | None:
        return 0.0 if self.does(evidence) else None


def _last(logits_TV: Floats) -> Floats:
    """Those of the last position."""
    last_V: Floats = logits_TV[-1]
    return last_V


def _last_only(evidence: Evidence) -> bool:
    """Each token from the one before it alone; the first from the prompt."""

    def of(row: int, prompt_T: Tokens, before: Tokens) -> Floats:
        return _last(evidence.logits(before[-1:] if len(before) else evidence.rows[row]))

    return evidence.got.shape[1] > 1 and evidence.by(of)


def _one_early(evidence: Evidence) -> bool:
    """The logits of the token before the last."""

    def of(row: int, prompt_T: Tokens, before: Tokens) -> Floats:
        whole = np.concatenate([evidence.rows[row], before])
        return _last(evidence.logits(whole)[: max(1, len(whole) - 1)])

    return evidence.by(of)


def _without_mask(evidence: Evidence) -> bool:
    """Padding is read like any token."""
    if evidence.prompt.mask is None:
        return False
    return evidence.by(
        lambda row, p_T, before: _last(evidence.logits(np.concatenate([p_T, before])))
    )


def _counted(evidence: Evidence) -> bool:
    """Positions count the padding."""
    how, mask = evidence.subject.offers.get(PADDED_AT), evidence.prompt.mask
    if how is None or mask is None:
        return False

    def of(row: int, prompt_T: Tokens, before: Tokens) -> Floats:
        whole = np.concatenate([prompt_T, before])[None]
        real = np.concatenate([mask[row], np.ones_like(before)])[None]
        return _last(how(whole, real, np.arange(whole.shape[1])[None])[0])

    return evidence.by(of)


def _new_hidden(evidence: Evidence) -> bool:
    """What was generated is hidden like padding, at positions that go on or that the mask says."""
    how, mask = evidence.subject.offers.get(PADDED), evidence.prompt.mask
    at = evidence.subject.offers.get(PADDED_AT)
    if how is None or mask is None or evidence.got.shape[1] < 2:
        return False

    def masked(row: int, prompt_T: Tokens, before: Tokens) -> tuple[Tokens, Tokens]:
        whole = np.concatenate([prompt_T, before])[None]
        return whole, np.concatenate([mask[row], np.zeros_like(before)])[None]

    def of_mask(row: int, prompt_T: Tokens, before: Tokens) -> Floats:
        return _last(how(*masked(row, prompt_T, before))[0])

    def going_on(row: int, prompt_T: Tokens, before: Tokens) -> Floats:
        assert at is not None
        whole, real = masked(row, prompt_T, before)
        first = int(np.flatnonzero(mask[row])[0])
        places = np.maximum(np.arange(whole.shape[1]) - first, 0)[None]
        return _last(at(whole, real, places)[0])

    return evidence.by(of_mask) or (at is not None and evidence.by(going_on))


def _prompt_counted(evidence: Evidence) -> bool:
    due = max(0, evidence.prompt.new - evidence.prompt.tokens.shape[1])
    return bool(evidence.got.shape[1] == due)


_MISTAKES = (
    _Mistake("generation-counts-prompt", "the prompt counts as generated", _prompt_counted),
    _Mistake(
        "generation-last-token-only",
        "each token is generated from the one before it alone",
        _last_only,
    ),
    _Mistake(
        "generation-one-early", "the logits of the token before the last are taken", _one_early
    ),
    _Mistake("generation-ignores-mask", "padding is read like any token", _without_mask),
    _Mistake("generation-positions-counted", "positions count the padding", _counted),
    _Mistake(
        "generation-tokens-as-padding", "what was generated is hidden like padding", _new_hidden
    ),
)
