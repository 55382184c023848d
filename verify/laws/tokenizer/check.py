"""The laws of the tokenizer: the ids that OpenAI's two files define, and the text back.

The reference is ``reference/bpe.py`` with the files beside the checkpoint. Special tokens in a text
are text, and nothing is added or cleaned up, in either direction.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic

from gpt_verify.errors import CheckpointError, described
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.explain import agreed
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.tokenizer.explained import (
    Call,
    Described,
    Given,
    Made,
    explain_ids,
    explain_texts,
    short,
    token_words,
)
from gpt_verify.laws.tokenizer.texts import id_lists, is_open, texts
from gpt_verify.port import TOKENIZERS, Tokenizer
from gpt_verify.reference.bpe import BPE, kind, split
from gpt_verify.text import listing


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
    calls: Callable[[Tokenizer], list[Call[Given, Made]]]
    differ: Callable[[Call[Given, Made]], str]
    explain: Callable[[Sequence[Call[Given, Made]]], Described]


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
            lambda calls: explain_ids(bpe, calls),
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
            lambda calls: explain_texts(bpe, calls),
        ),
        "lists of ids",
    )


def _vocabulary(subject: Subject) -> BPE:
    if not subject.checkpoint.has_vocabulary:
        raise NotExamined("the checkpoint has no vocabulary")
    try:
        return subject.bpe
    except CheckpointError as error:
        raise NotExamined(f"the checkpoint's vocabulary cannot be used: {error}") from error


def _judge(subject: Subject, direction: _Direction[Any, Any], things: str) -> list[Finding]:
    tokenizers = subject.offers[TOKENIZERS]()
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
                f"{name}: {direction.word}({short(worst.given)}){direction.differ(worst)}"
                f"{said and f': {said}'} [{len(failed)} of {len(calls)} {things}]"
            )
    law = f"tokenizer.{direction.word}"
    more: dict[str, Any] = {"tokenizers": details}
    if wrong:
        # A name stands for the port: all of its tokenizers that are wrong must have that fault.
        named = agreed(faults)
        return [Finding(law, Status.FAILED, "; ".join(wrong), named=named, details=more)]
    same = "ids" if direction.word == "encode" else "text"
    message = f"{', '.join(tokenizers)}: {number} {things}, same {same}"
    return [Finding(law, Status.PASSED, message + _open_words(opened), details=more)]


def _open_words(characters: str) -> str:
    """What is said of characters whose kind the definition leaves to the version of Unicode."""
    found = sorted(set(characters))
    if not found:
        return ""
    shown = listing(f"U+{ord(c):04X}" for c in found)
    return (
        f"; {shown} by another Unicode than this Python's {unicodedata.unidata_version}, "
        "which the definition leaves open"
    )


# Text to ids


def _encoded(
    bpe: BPE, tokenizer: Tokenizer, text: str, expected: list[int]
) -> Call[str, list[int]]:
    try:
        got = list(tokenizer.encode(text))
    except Exception as error:
        return Call(text, None, expected, raised=_raised(error))
    found = "" if got == expected else _other_unicode(bpe, text, got)
    return Call(text, got, expected, open=found)


def _other_unicode(bpe: BPE, text: str, got: list[int]) -> str:
    """The open character that another version of Unicode takes for something else, giving this."""
    found = next(filter(is_open, text), "")
    for other in "LN? " if found else "":
        if got == bpe.encode_pieces(split(text, lambda c, o=other: o if is_open(c) else kind(c))):  # type: ignore[misc]  # bound now, on purpose
            return found
    return ""


def _ids_differ(bpe: BPE, call: Call[str, list[int]]) -> str:
    if call.got is None:
        return call.raised
    pairs = zip_longest(call.got, call.expected)
    at, (got, expected) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    return f"[{at}] = {token_words(bpe, got)}, should be {token_words(bpe, expected)}"


# Ids to text


def _decoded(tokenizer: Tokenizer, ids: list[int], expected: str) -> Call[list[int], str]:
    try:
        return Call(ids, tokenizer.decode(ids), expected)
    except Exception as error:
        return Call(ids, None, expected, raised=_raised(error))


def _texts_differ(call: Call[list[int], str]) -> str:
    if call.got is None:
        return call.raised
    pairs = zip_longest(call.got, call.expected)
    at = next(i for i, (got, expected) in enumerate(pairs) if got != expected)
    got, expected = (short(text[at:]) for text in (call.got, call.expected))
    return f"[{at}:] = {got}, should be {expected}"


# Both


def _raised(error: Exception) -> str:
    return f" raised {described(error)}"
