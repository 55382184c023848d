"""Why a tokenizer's ids or texts are not the reference's: in words, and as a fault of the catalogue
where what it gave in all calls can be no other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

from gpt_verify.laws.explain import UNEXPLAINED, explain
from gpt_verify.laws.tokenizer.hypotheses import (
    DECODING,
    ENCODING,
    Calls,
    Decode,
    Encode,
    Mistake,
)
from gpt_verify.laws.tokenizer.texts import is_open
from gpt_verify.reference.bpe import BPE, alphabet, split

#: Of a text, a list of ids or a list of open characters, as far as a message shows it.
SHOWN = 32

Given = TypeVar("Given", str, list[int])
Made = TypeVar("Made", str, list[int])


@dataclass(frozen=True)
class Call(Generic[Given, Made]):
    """One call of a tokenizer.

    Attributes:
        given: what it was called with.
        got: what it returned; None where it raised.
        expected: what it should have returned.
        raised: one line.
        open: the characters on whose kind versions of Unicode differ, where that explains it.
    """

    given: Given
    got: Made | None
    expected: Made
    raised: str = ""
    open: str = ""

    @property
    def right(self) -> bool:
        return self.got == self.expected or bool(self.open)


class Described(NamedTuple):
    """What a tokenizer did, in words; and the fault of the catalogue, where it is one of them."""

    description: str = ""
    fault: str = ""


def explain_ids(bpe: BPE, calls: Sequence[Call[str, list[int]]]) -> Described:
    """What all calls of ``encode`` show, the most telling first."""
    return (
        _added(bpe, calls)
        or _name(bpe, calls, ENCODING)
        or _merge_lost(bpe, calls)
        or _how(bpe, calls)
    )


def _added(bpe: BPE, calls: Iterable[Call[str, list[int]]]) -> Described | None:
    """The same token before or after every text."""
    plain = _plain(calls)
    for where, of, rest, fault in (
        ("before", slice(1), slice(1, None), "tokenizer-token-before"),
        ("after", slice(-1, None), slice(-1), "tokenizer-token-after"),
    ):
        added = {tuple((call.got or [])[of]) for call in plain}
        if len(added) == 1 and all((c.got or [])[rest] == c.expected for c in plain):
            (token,) = added
            if token:
                words = f"{token_words(bpe, token[0])} is added {where} every text"
                return Described(words, fault)
    return None


def _merge_lost(bpe: BPE, calls: Iterable[Call[str, list[int]]]) -> Described | None:
    """One line of ``vocab.bpe`` that is never applied: the first one whose token no text has any
    more. Inside of a word that every pattern takes for one: elsewhere it may have been cut."""
    plain = _plain(calls)
    gone = {token for call in plain for token in call.expected}
    gone -= {token for call in plain for token in call.got or []}
    made = (n for n, (left, right) in enumerate(bpe.merges) if bpe.encoder[left + right] in gone)
    line = next(made, None)
    if line is None or not _inside_a_word(*bpe.merges[line]):
        return None
    without = BPE(bpe.encoder, [*bpe.merges[:line], *bpe.merges[line + 1 :]])
    if any(call.got != without.encode(call.given) for call in plain):
        return None
    words = f"the merge {' '.join(bpe.merges[line])} of vocab.bpe, number {line + 1}, is lost"
    return Described(words, "tokenizer-merge-lost")


def _inside_a_word(left: str, right: str) -> bool:
    """ASCII letters in lower case but for the first, joined to each other and not to a space."""
    space = alphabet()[ord(" ")]
    word = (left + right).removeprefix(space)
    return left != space and word.isascii() and word.isalpha() and word[1:].islower()


def _how(bpe: BPE, calls: Sequence[Call[str, list[int]]]) -> Described:
    """What the ids themselves show, of the text in which they show most; nothing where some are
    right and the others refused."""
    wrong = [call for call in calls if not call.right and call.got is not None]
    shown = [_how_one(bpe, call.given, call.got or []) for call in wrong]
    if not shown:
        return Described()
    found = _SHOWN[min(shown)]
    # Beside texts that it refuses, it has another fault.
    return found if all(call.got is not None for call in calls) else Described(found.description)


#: From what nothing else could show to what any mistake might.
_SHOWN = (
    Described("ids that no token has", "tokenizer-ids-unknown"),
    Described("these are the ids of another text"),
    Described(
        "the text is cut into words otherwise than by GPT-2's pattern", "tokenizer-words-otherwise"
    ),
    Described("bytes are merged otherwise than vocab.bpe says, or words are cut further"),
)


def _how_one(bpe: BPE, text: str, got: list[int]) -> int:
    """Which line of ``_SHOWN`` these ids are."""
    if any(token not in bpe.decoder for token in got):
        return 0
    words = [bpe.decode_bytes([token]) for token in got]
    if b"".join(words) != text.encode():
        return 1
    cuts = set(accumulate(map(len, words)))
    return 3 if cuts >= set(accumulate(len(piece.encode()) for piece in split(text))) else 2


def explain_texts(bpe: BPE, calls: Sequence[Call[list[int], str]]) -> Described:
    """What all calls of ``decode`` show; an error says by itself what it is."""
    raised = any(call.raised for call in calls)
    return _name(bpe, calls, DECODING) or Described("" if raised else UNEXPLAINED)


def _plain(calls: Iterable[Call[Given, Made]]) -> list[Call[Given, Made]]:
    """Without the texts on which versions of Unicode part: what differs by them must not hide what
    differs by mistake."""
    return [c for c in calls if isinstance(c.given, list) or not any(map(is_open, c.given))]


def _name(
    bpe: BPE,
    calls: Sequence[Call[Any, Any]],
    mistakes: Sequence[Mistake[Encode] | Mistake[Decode]],
) -> Described | None:
    """The one mistake that gives everything that the tokenizer gave; otherwise nothing."""
    told = _plain(calls)
    if all(call.right for call in told):
        told = list(calls)  # every mistake that changes nothing in the plain ones would fit them
    # The wrong ones first: most mistakes fail at the first of them.
    told.sort(key=lambda call: (call.right, len(call.given)))
    found = explain(Calls(bpe, [(call.given, call.got) for call in told]), mistakes)
    if found.by is not None:
        return Described(found.description, found.by.fault)
    return Described(UNEXPLAINED) if found.fitting else None


def token_words(bpe: BPE, token: int | None) -> str:
    if token is None:
        return "nothing"
    if token not in bpe.decoder:
        return f"{token} (no token)"
    return f"{token} ({short(bpe.decode([token]))})"


def short(value: str | list[int]) -> str:
    """As source code; cut where it is long."""
    if isinstance(value, str):
        cut = value[:SHOWN] + "…" * (len(value) > SHOWN)
        return ascii(cut).replace("\\u2026", "…") if not cut.isprintable() else repr(cut)
    return f"[{', '.join(map(str, value[:8]))}{', …' if len(value) > 8 else ''}]"
