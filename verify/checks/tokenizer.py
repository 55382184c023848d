"""The laws of the tokenizer: the ids that OpenAI's two files define, and the text back.

The reference is ``reference/bpe.py`` with the files beside the checkpoint. Special tokens in a text
are text, and nothing is added or cleaned up, in either direction.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import Any, Generic, NamedTuple, TypeVar

from reference.bpe import BPE, alphabet, kind, split
from verify.checks.subject import NotExamined, Subject
from verify.checks.tokenizer_mistakes import DECODING, ENCODING, Decode, Encode, Mistake
from verify.checks.tokenizer_texts import id_lists, is_open, texts
from verify.errors import CheckpointError
from verify.findings import Finding, Status
from verify.ports.port import Tokenizer

#: Of a text, a list of ids or a list of open characters, as far as a message shows it.
SHOWN = 32

Given = TypeVar("Given", str, list[int])
Made = TypeVar("Made", str, list[int])


@dataclass(frozen=True)
class _Call(Generic[Given, Made]):
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


class _Said(NamedTuple):
    """What a tokenizer did, in words; and the fault of the catalogue, where it is one of them."""

    words: str = ""
    fault: str = ""


@dataclass(frozen=True)
class _Direction(Generic[Given, Made]):
    """What the two directions differ in.

    Attributes:
        word: ``encode`` or ``decode``.
        calls: makes every call on one tokenizer.
        differ: words the first difference of two results.
        explain: words what a tokenizer did, from all of its calls.
    """

    word: str
    calls: Callable[[Tokenizer], list[_Call[Given, Made]]]
    differ: Callable[[_Call[Given, Made]], str]
    explain: Callable[[Sequence[_Call[Given, Made]]], _Said]


def check_encode(subject: Subject) -> list[Finding]:
    """Text to ids, for every tokenizer of the port."""
    bpe = _vocabulary(subject)
    expected = [(text, bpe.encode(text)) for text in texts(bpe, subject.rng(41)).values()]
    return _judge(
        subject,
        _Direction(
            "encode",
            lambda tokenizer: [_encoded(bpe, tokenizer, *pair) for pair in expected],
            lambda call: _ids_differ(bpe, call),
            lambda calls: _explain_ids(bpe, calls),
        ),
        "texts",
    )


def check_decode(subject: Subject) -> list[Finding]:
    """Ids to text, for every tokenizer of the port."""
    bpe = _vocabulary(subject)
    encoded = {name: bpe.encode(text) for name, text in texts(bpe, subject.rng(41)).items()}
    lists = id_lists(bpe, encoded, subject.rng(42)).values()
    expected = [(ids, bpe.decode(ids)) for ids in lists]
    return _judge(
        subject,
        _Direction(
            "decode",
            lambda tokenizer: [_decoded(tokenizer, *pair) for pair in expected],
            _texts_differ,
            lambda calls: _name(bpe, calls, DECODING) or _Said(_unexplained(calls)),
        ),
        "lists of ids",
    )


def _vocabulary(subject: Subject) -> BPE:
    if subject.checkpoint.encoder is None or subject.checkpoint.merges is None:
        raise NotExamined("the checkpoint has no vocabulary")
    try:
        return subject.bpe
    except CheckpointError as error:
        raise NotExamined(f"the checkpoint's vocabulary cannot be used: {error}") from error


def _judge(subject: Subject, direction: _Direction[Any, Any], things: str) -> list[Finding]:
    assert subject.port.tokenizers is not None, "the law needs them"
    tokenizers = subject.port.tokenizers()
    if not tokenizers:
        raise NotExamined("no tokenizer")
    wrong, opened = [], ""
    details, faults = {}, set()
    number = 0
    for name, tokenizer in tokenizers.items():
        calls = direction.calls(tokenizer)
        number = len(calls)
        failed = [call for call in calls if not call.right]
        details[name] = {"calls": len(calls), "wrong": len(failed)}
        opened += "".join(call.open for call in calls)
        if failed:
            worst = min(failed, key=lambda call: len(call.given))
            said, fault = direction.explain(calls)
            faults.add(fault)
            wrong.append(
                f"{name}: {direction.word}({_short(worst.given)}){direction.differ(worst)}"
                f"{said and f': {said}'} [{len(failed)} of {len(calls)} {things}]"
            )
    law = f"tokenizer.{direction.word}"
    more: dict[str, Any] = {"tokenizers": details}
    if wrong:
        # A name stands for the port: all of its tokenizers that are wrong must have that fault.
        more |= {"fault": faults.pop()} if len(faults) == 1 and "" not in faults else {}
        return [Finding(law, Status.FAILED, "; ".join(wrong), details=more)]
    same = "ids" if direction.word == "encode" else "text"
    message = f"{', '.join(tokenizers)}: {number} {things}, same {same}"
    return [Finding(law, Status.PASSED, message + _open_words(opened), details=more)]


def _open_words(characters: str) -> str:
    """What is said of characters whose kind the definition leaves to the version of Unicode."""
    found = sorted(set(characters))
    if not found:
        return ""
    shown = ", ".join(f"U+{ord(c):04X}" for c in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"; {shown}{more} by another Unicode than this Python's {unicodedata.unidata_version}, "
        "which the definition leaves open"
    )


# Text to ids


def _encoded(
    bpe: BPE, tokenizer: Tokenizer, text: str, expected: list[int]
) -> _Call[str, list[int]]:
    try:
        got = list(tokenizer.encode(text))
    except Exception as error:
        return _Call(text, None, expected, raised=_raised(error))
    found = "" if got == expected else _other_unicode(bpe, text, got)
    return _Call(text, got, expected, open=found)


def _other_unicode(bpe: BPE, text: str, got: list[int]) -> str:
    """The open character that another version of Unicode takes for something else, giving this."""
    found = next(filter(is_open, text), "")
    for other in "LN? " if found else "":
        if got == bpe.encode_pieces(split(text, lambda c, o=other: o if is_open(c) else kind(c))):  # type: ignore[misc]  # bound now, on purpose
            return found
    return ""


def _ids_differ(bpe: BPE, call: _Call[str, list[int]]) -> str:
    if call.got is None:
        return call.raised
    pairs = zip_longest(call.got, call.expected)
    at, (got, expected) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    return f"[{at}] = {_token(bpe, got)}, should be {_token(bpe, expected)}"


def _token(bpe: BPE, token: int | None) -> str:
    if token is None:
        return "nothing"
    if token not in bpe.decoder:
        return f"{token} (no token)"
    return f"{token} ({_short(bpe.decode([token]))})"


def _explain_ids(bpe: BPE, calls: Sequence[_Call[str, list[int]]]) -> _Said:
    return (
        _added(bpe, calls)
        or _name(bpe, calls, ENCODING)
        or _merge_lost(bpe, calls)
        or _how(bpe, calls)
    )


def _added(bpe: BPE, calls: Iterable[_Call[str, list[int]]]) -> _Said | None:
    """The same token before or after every text."""
    plain = _plain(calls)
    for where, of in (("before", slice(1)), ("after", slice(-1, None))):
        rest = slice(1, None) if where == "before" else slice(-1)
        added = {tuple((call.got or [])[of]) for call in plain}
        if len(added) == 1 and all((c.got or [])[rest] == c.expected for c in plain):
            (token,) = added
            if token:
                words = f"{_token(bpe, token[0])} is added {where} every text"
                return _Said(words, f"tokenizer-token-{where}")
    return None


def _merge_lost(bpe: BPE, calls: Iterable[_Call[str, list[int]]]) -> _Said | None:
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
    return _Said(words, "tokenizer-merge-lost")


def _inside_a_word(left: str, right: str) -> bool:
    """ASCII letters in lower case but for the first, joined to each other and not to a space."""
    space = alphabet()[ord(" ")]
    word = (left + right).removeprefix(space)
    return left != space and word.isascii() and word.isalpha() and word[1:].islower()


def _how(bpe: BPE, calls: Sequence[_Call[str, list[int]]]) -> _Said:
    """What the ids themselves show, of the text in which they show most; nothing where some are
    right and the others refused."""
    wrong = [call for call in calls if not call.right and call.got is not None]
    shown = [_how_one(bpe, call.given, call.got or []) for call in wrong]
    if not shown:
        return _Said()
    found = _SHOWN[min(shown)]
    # Beside texts that it refuses, it has another fault.
    return found if all(call.got is not None for call in calls) else _Said(found.words)


#: From what nothing else could show to what any mistake might.
_SHOWN = (
    _Said("ids that no token has", "tokenizer-ids-unknown"),
    _Said("these are the ids of another text"),
    _Said(
        "the text is cut into words otherwise than by GPT-2's pattern", "tokenizer-words-otherwise"
    ),
    _Said("bytes are merged otherwise than vocab.bpe says, or words are cut further"),
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


# Ids to text


def _decoded(tokenizer: Tokenizer, ids: list[int], expected: str) -> _Call[list[int], str]:
    try:
        return _Call(ids, tokenizer.decode(ids), expected)
    except Exception as error:
        return _Call(ids, None, expected, raised=_raised(error))


def _unexplained(calls: Iterable[_Call[list[int], str]]) -> str:
    """An error says by itself what it is."""
    return "" if any(call.raised for call in calls) else "unexplained"


def _texts_differ(call: _Call[list[int], str]) -> str:
    if call.got is None:
        return call.raised
    pairs = zip_longest(call.got, call.expected)
    at = next(i for i, (got, expected) in enumerate(pairs) if got != expected)
    got, expected = (_short(text[at:]) for text in (call.got, call.expected))
    return f"[{at}:] = {got}, should be {expected}"


# Both


def _plain(calls: Iterable[_Call[Given, Made]]) -> list[_Call[Given, Made]]:
    """Without the texts on which versions of Unicode part: what differs by them must not hide what
    differs by mistake."""
    return [c for c in calls if isinstance(c.given, list) or not any(map(is_open, c.given))]


def _name(
    bpe: BPE,
    calls: Sequence[_Call[Any, Any]],
    mistakes: Sequence[Mistake[Encode]] | Sequence[Mistake[Decode]],
) -> _Said | None:
    """The one mistake that gives everything that the tokenizer gave; otherwise nothing."""
    told = _plain(calls)
    if all(call.right for call in told):
        told = list(calls)  # every mistake that changes nothing in the plain ones would fit them
    # The wrong ones first: most mistakes fail at the first of them.
    told.sort(key=lambda call: (call.right, len(call.given)))
    fitting = [
        _Said(mistake.said, mistake.fault)
        for mistake in mistakes
        if any(all(_gives(way, bpe, call) for call in told) for way in mistake.variants)
    ]
    if len(fitting) == 1:
        return fitting[0]
    return _Said("unexplained") if fitting else None


def _gives(way: Encode | Decode, bpe: BPE, call: _Call[Any, Any]) -> bool:
    """A mistake gives what the tokenizer gave, or raises as it does."""
    try:
        return bool(call.got == way(bpe, call.given))
    except ValueError:
        return call.got is None


def _raised(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return (
        f" raised {type(error).__name__}: {first}" if first else f" raised {type(error).__name__}"
    )


def _short(value: str | list[int]) -> str:
    """As source code; cut where it is long."""
    if isinstance(value, str):
        cut = value[:SHOWN] + "…" * (len(value) > SHOWN)
        return ascii(cut).replace("\\u2026", "…") if not cut.isprintable() else repr(cut)
    return f"[{', '.join(map(str, value[:8]))}{', …' if len(value) > 8 else ''}]"
