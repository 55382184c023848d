"""Byte-level BPE: text to token ids and back, for any text at all.

Reproduces ``src/encoder.py`` of openai/gpt-2 (Radford et al. 2019, section 2.2; Sennrich et al.
2016, algorithm 1) with nothing but the standard library:

    text ─ split ─→ pieces ─ UTF-8 ─→ bytes ─ alphabet ─→ symbols ─ merges ─→ tokens ─→ ids

Which characters are letters or numbers is decided by this Python's Unicode database
(``unicodedata.unidata_version``), as the original leaves it to the database of its own library: a
character that one of the two does not know yet, it takes for punctuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from heapq import heapify, heappop, heappush

#: Unicode's property White_Space, which the original's ``\s`` is. (``str.isspace`` also counts the
#: separators U+001C … U+001F.)
WHITE_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@cache
def alphabet() -> dict[int, str]:
    """Byte → the printable character that stands for it: gpt-2 ``src/encoder.py:9``.

    A byte that is a visible character of Latin-1 stands for itself; the 68 others take the
    characters from U+0100 on, in order. So no symbol is white space, by which files are separated.
    """
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)}
    visible |= {*range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + n) for n, byte in enumerate(hidden)
    }


@cache
def kind(character: str) -> str:
    """``L`` (letter), ``N`` (number), `` `` (white space) or ``?`` (everything else)."""
    if character in WHITE_SPACE:
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "?"


def split(text: str, kind_of: Callable[[str], str] = kind) -> Iterator[str]:
    r"""Cut text into the pieces that are encoded one by one; together they are the text.

    The same as finding all matches of gpt-2 ``src/encoder.py:53``::

        's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

    Args:
        text: any.
        kind_of: `kind`, or what another version of Unicode takes a character for.
    """
    start, length = 0, len(text)
    while start < length:
        end = _piece_end(text, start, length, kind_of)
        yield text[start:end]
        start = end


def _piece_end(text: str, start: int, length: int, kind_of: Callable[[str], str]) -> int:
    """The alternatives of the pattern, in its order."""
    for contraction in CONTRACTIONS:
        if text.startswith(contraction, start):
            return start + len(contraction)
    # One space belongs to the letters, numbers or signs that follow it.
    first = start + 1 if text[start] == " " and start + 1 < length else start
    found = kind_of(text[first])
    end = first + 1
    if found != " ":
        while end < length and kind_of(text[end]) == found:
            end += 1
        return end
    while end < length and kind_of(text[end]) == " ":
        end += 1
    # A run of white space leaves its last character to what follows, if it has another one.
    return end if end == length or end == start + 1 else end - 1


class BPE:
    """An encoder and its inverse, as two files define them.

    Args:
        encoder: token, spelt in the alphabet → id (``encoder.json``).
        merges: pairs of tokens to be joined, the first to be applied first (``vocab.bpe``).

    Raises:
        ValueError: a byte has no token, two tokens have the same id, a token is not spelt in the
            alphabet, or a merge occurs twice or takes or makes a token that does not exist.
    """

    def __init__(self, encoder: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self.encoder = dict(encoder)
        self.decoder = {token: symbols for symbols, token in self.encoder.items()}
        self.merges = list(merges)
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        self._byte = {symbol: byte for byte, symbol in alphabet().items()}
        self._known: dict[str, list[int]] = {}
        if len(self.decoder) != len(self.encoder):
            raise ValueError("two tokens have the same id")
        for byte, symbol in alphabet().items():
            if symbol not in self.encoder:
                raise ValueError(f"byte {byte:#04x} ({symbol!r}) has no token")
        for symbols in self.encoder:
            if not symbols or not self._byte.keys() >= set(symbols):
                raise ValueError(f"token {symbols!r} is not spelt in the alphabet of bytes")
        if len(self._rank) != len(merges):
            twice = next(pair for rank, pair in enumerate(merges) if self._rank[pair] != rank)
            raise ValueError(f"merge {twice[0]!r} {twice[1]!r} occurs twice")
        for left, right in merges:
            for symbols in (left, right, left + right):
                if symbols not in self.encoder:
                    raise ValueError(f"merge {left!r} {right!r}: there is no token {symbols!r}")

    def encode(self, text: str) -> list[int]:
        """Ids of any text. ``<|endoftext|>`` is text like any other, as in the original.

        Raises:
            UnicodeEncodeError: a lone surrogate, which no UTF-8 stands for.
        """
        return self.encode_pieces(split(text))

    def encode_pieces(self, pieces: Iterable[str]) -> list[int]:
        """Ids of a text that has been cut already; no merge goes across a cut."""
        ids: list[int] = []
        for piece in pieces:
            if piece not in self._known:
                symbols = self._merge([alphabet()[byte] for byte in piece.encode()])
                self._known[piece] = [self.encoder[symbol] for symbol in symbols]
            ids += self._known[piece]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the tokens stand for, which may be cut in the middle of a character.

        Raises:
            ValueError: an id that no token has.
        """
        decoded = bytearray()
        for token in ids:
            if token not in self.decoder:
                raise ValueError(f"no token has the id {token}")
            decoded += bytes(self._byte[symbol] for symbol in self.decoder[token])
        return bytes(decoded)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the tokens stand for; what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def _merge(self, word: list[str]) -> list[str]:
        """Join every occurrence of the earliest merge, from the left, until none applies.

        Candidates wait in a heap by rank and place, so that a word of n bytes takes n log n steps;
        the original scans the whole word for each merge.
        """
        after, before = [*range(1, len(word) + 1)], [*range(-1, len(word) - 1)]

        def rank(at: int) -> int | None:
            """The rank of the pair that starts here, if there is one."""
            follower = after[at]
            return self._rank.get((word[at], word[follower])) if follower < len(word) else None

        waiting = [(r, at) for at in range(len(word)) if (r := rank(at)) is not None]
        heapify(waiting)
        while waiting:
            earliest, places = self._turn(waiting)
            for at in places:
                if not word[at] or rank(at) != earliest:
                    continue  # an earlier merge has taken one of the two
                taken = after[at]
                word[at] += word[taken]
                word[taken] = ""
                after[at] = after[taken]
                if after[at] < len(word):
                    before[after[at]] = at
                for changed in (before[at], at):
                    if changed >= 0 and (r := rank(changed)) is not None:
                        heappush(waiting, (r, changed))
        return [symbol for symbol in word if symbol]

    @staticmethod
    def _turn(waiting: list[tuple[int, int]]) -> tuple[int, list[int]]:
        """The earliest rank of a heap of ``(rank, place)``, and all its places, taken out."""
        earliest = waiting[0][0]
        places: list[int] = []
        while waiting and waiting[0][0] == earliest:
            places.append(heappop(waiting)[1])
        return earliest, places
