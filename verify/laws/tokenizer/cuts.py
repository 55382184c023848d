"""Patterns that cut a text into words otherwise than GPT-2's, as other tokenizers have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from gpt_verify.reference.bpe import CONTRACTIONS, WHITE_SPACE, kind, split

#: Python's own methods also strip the separators U+001C … U+001F.
BLANK = "".join(WHITE_SPACE)


def pattern(
    text: str, *, contractions: bool = True, lookahead: bool = True, space: bool = True
) -> Iterator[str]:
    r"""The pieces of a text by GPT-2's pattern, or by one that lacks something.

    Args:
        text: any.
        contractions: without them, ``'s`` is a sign and a letter.
        lookahead: without ``\s+(?!\S)``, white space leaves nothing to the word after it.
        space: without the ``\x20?``, no word takes the space before it along.
    """
    runs = ["".join(run) for _, run in groupby(text, key=lambda c: kind(c) == " ")]
    before = ""
    for n, run in enumerate(runs):
        if kind(run[0]) != " ":
            yield from split(before + run) if contractions else _by_kind(before, run)
            before = ""
            continue
        has_word = n + 1 < len(runs)
        if has_word and lookahead and len(run) > 1:
            yield run[:-1]
            run = run[-1]
        if has_word and space and run == " ":
            before = run
        else:
            yield run


def _by_kind(before: str, word: str) -> Iterator[str]:
    for _, run in groupby(word, key=kind):
        yield before + "".join(run)
        before = ""


def in_digits(text: str, size: int, space: bool) -> Iterator[str]:
    """Numbers in groups of at most ``size`` digits, the first with or without its space."""
    for piece in split(text):
        if kind(piece[-1]) != "N":
            yield piece
            continue
        blank, digits = piece[: piece[0] == " "], piece[piece[0] == " " :]
        if blank and not space:
            yield blank
            blank = ""
        for first in range(0, len(digits), size):
            yield blank + digits[first : first + size]
            blank = ""


def capital_contractions(text: str) -> Iterator[str]:
    """As ``split``, with ``(?i:…)`` around the contractions of its pattern."""
    contraction = re.compile("|".join(CONTRACTIONS), re.IGNORECASE)
    start = 0
    while start < len(text):
        found = contraction.match(text, start)
        piece = found.group() if found else next(split(text[start:]))
        yield piece
        start += len(piece)


def at_spaces(text: str) -> list[str]:
    """By GPT-2's pattern with one kind of characters in place of letters, numbers and signs."""
    return re.findall(f" ?[^{BLANK}]+|[{BLANK}]+(?![^{BLANK}])|[{BLANK}]+", text)


def ascii_kind(character: str) -> str:
    found = kind(character)
    return "?" if found in "LN" and not character.isascii() else found
