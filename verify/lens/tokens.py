"""Tokens as a reader can tell them apart: a space shows, a line break shows, so do half characters.

Different tokens are shown differently, whatever bytes they hold.
"""

from __future__ import annotations

import unicodedata

#: White space that is common in text, each as one visible sign.
SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
_TAKEN = {*SIGNS.values(), "\\", "◌"}


def visible(token: bytes) -> str:
    """The text of a token in which every byte shows.

    White space becomes a sign, bytes that are no UTF-8 become ``\\xe2``, what cannot be printed
    becomes its escape, a mark that would join the character before it sits on a dotted circle, and
    the signs that serve these purposes are themselves escaped.
    """
    return "".join(map(_shown, token.decode("utf-8", "surrogateescape"))) or "∅"


def _shown(c: str) -> str:
    if c in SIGNS:
        return SIGNS[c]
    if c in _TAKEN or c == "∅":
        return "\\" + c
    if "\udc80" <= c <= "\udcff":  # a byte that is no UTF-8, as Python keeps it
        return f"\\x{ord(c) - 0xDC00:02x}"
    if not c.isprintable():
        return f"\\u{{{ord(c):x}}}"
    return "◌" + c if unicodedata.category(c).startswith("M") else c


def numbered(token: int) -> str:
    """A token of a checkpoint without a vocabulary."""
    return f"#{token}"
