"""What a tokenizer would give if it had made one of the usual mistakes.

Each is worked out with the reference's own files, so that a mistake is named only where it gives
every id, or every character, that the tokenizer gave. The same mistakes, made with another library,
are injected by ``gpt_verify.laws.tokenizer.faults``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic, Literal, TypeVar

from gpt_verify.laws.tokenizer.cuts import (
    BLANK,
    ascii_kind,
    at_spaces,
    capital_contractions,
    in_digits,
    pattern,
)
from gpt_verify.laws.tokenizer.merges import OneByOne, with_merges
from gpt_verify.reference.bpe import BPE, WHITE_SPACE, alphabet, split

Encode = Callable[[BPE, str], list[int]]
Decode = Callable[[BPE, list[int]], str]
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
Way = TypeVar("Way", Encode, Decode)


@dataclass(frozen=True)
class Calls:
    """What a tokenizer gave, as evidence for a ``Mistake``.

    Attributes:
        bpe: the reference.
        each: what each call was given, and what it gave; None where it raised.
    """

    bpe: BPE
    each: Sequence[tuple[Any, Any]]

    def given_by(self, way: Encode | Decode, call: tuple[Any, Any]) -> bool:
        """A mistake gives what the tokenizer gave, or raises as it does."""
        given, got = call
        try:
            return bool(got == way(self.bpe, given))
        except ValueError:
            return got is None


@dataclass(frozen=True)
class Mistake(Generic[Way]):
    """One mistake.

    Attributes:
        fault: its name in the catalogue.
        description: what the report says of it.
        variants: each gives what a tokenizer that makes it in one way gives; ValueError where that
            one raises.
    """

    fault: str
    description: str
    variants: tuple[Way, ...]

    def fits(self, calls: Calls) -> float | None:
        """Everything that the tokenizer gave, one variant gives."""
        fits = any(all(map(partial(calls.given_by, way), calls.each)) for way in self.variants)
        return 0.0 if fits else None


#: What ``clean_up_tokenization_spaces`` of transformers removes the space before, in its order.
CLEANED = (".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re")


@lru_cache(maxsize=2)
def specials(bpe: BPE) -> tuple[str, ...]:
    """Tokens that no merge makes and that are no byte: ``<|endoftext|>``."""
    made = {*alphabet().values(), *(left + right for left, right in bpe.merges)}
    return tuple(symbols for symbols in bpe.encoder if symbols not in made)


def _on(change: Callable[[str], str]) -> Encode:
    """The text is changed first."""
    return lambda bpe, text: bpe.encode(change(text))


def _space_before(unless: Callable[[str], bool]) -> Encode:
    return _on(lambda text: text if unless(text) else f" {text}")


def _lower_each(text: str) -> str:
    """Character by character, without the rule for a sigma at the end of a word."""
    return "".join(map(str.lower, text))


def _specials_taken(bpe: BPE, text: str) -> list[int]:
    names = specials(bpe)
    if not names:
        return bpe.encode(text)
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
        ids += [bpe.encoder[part]] if part in names else bpe.encode(part)
    return ids


def _specials_refused(bpe: BPE, text: str) -> list[int]:
    if any(name in text for name in specials(bpe)):
        raise ValueError("a special token in the text")
    return bpe.encode(text)


def _shifted(by: int) -> Encode:
    return lambda bpe, text: [token + by for token in bpe.encode(text)]


def _cut_by(cut: Callable[[str], Iterable[str]]) -> Encode:
    return lambda bpe, text: bpe.encode_pieces(cut(text))


def _normalised(form: Form) -> Encode:
    return _on(partial(unicodedata.normalize, form))


ENCODING: tuple[Mistake[Encode], ...] = (
    Mistake(
        "tokenizer-prefix-space",
        "a space is put before the text (add_prefix_space)",
        (
            _space_before(lambda text: False),
            _space_before(lambda text: not text),
            _space_before(lambda text: text.startswith(" ")),
            _space_before(lambda text: not text or text[0] == " "),
            _space_before(lambda text: text[:1] in WHITE_SPACE),
            _space_before(lambda text: not text or text[0] in WHITE_SPACE),
        ),
    ),
    Mistake(
        "tokenizer-lower-case",
        "the text is lower-cased",
        (_on(str.lower), _on(_lower_each), _on(str.casefold)),
    ),
    Mistake("tokenizer-nfc", "the text is normalised (NFC)", (_normalised("NFC"),)),
    Mistake("tokenizer-nfd", "the text is normalised (NFD)", (_normalised("NFD"),)),
    Mistake("tokenizer-nfkc", "the text is normalised (NFKC)", (_normalised("NFKC"),)),
    Mistake("tokenizer-nfkd", "the text is normalised (NFKD)", (_normalised("NFKD"),)),
    Mistake(
        "tokenizer-lower-case-nfkc",
        "the text is lower-cased and normalised (NFKC)",
        (
            _on(lambda text: _lower_each(unicodedata.normalize("NFKC", text))),
            _on(lambda text: unicodedata.normalize("NFKC", _lower_each(text))),
        ),
    ),
    Mistake(
        "tokenizer-stripped",
        "white space at the ends is stripped",
        (
            _on(lambda text: text.strip(BLANK)),
            _on(lambda text: text.rstrip(BLANK)),
            _on(lambda text: text.lstrip(BLANK)),
            _on(str.strip),
        ),
    ),
    Mistake(
        "tokenizer-spaces-joined",
        "runs of white space are made one space",
        (_on(lambda text: " ".join(text.split())),),
    ),
    Mistake(
        "tokenizer-line-ends",
        "line ends \\r\\n are made \\n",
        (
            _on(lambda text: text.replace("\r\n", "\n")),
            _on(lambda text: text.replace("\r\n", "\n").replace("\r", "\n")),
        ),
    ),
    Mistake(
        "tokenizer-special-taken",
        "a special token in the text is taken for the token, not for text",
        (_specials_taken,),
    ),
    Mistake(
        "tokenizer-special-refused",
        "every text with a special token in it is refused, and no other",
        (_specials_refused,),
    ),
    Mistake(
        "tokenizer-no-lookahead",
        "white space before a word is not left to it: \\s+(?!\\S) is missing from the pattern",
        (_cut_by(partial(pattern, lookahead=False)),),
    ),
    Mistake(
        "tokenizer-no-contractions",
        "contractions ('s, 't, …) are not cut off",
        (_cut_by(partial(pattern, contractions=False)),),
    ),
    Mistake(
        "tokenizer-capital-contractions",
        "contractions in capitals ('S, 'T, …) are cut off too",
        (_cut_by(capital_contractions),),
    ),
    Mistake(
        "tokenizer-no-space-before",
        "the space before a word is cut off from it",
        (_cut_by(partial(pattern, space=False)),),
    ),
    Mistake(
        "tokenizer-ascii-letters",
        "only ASCII letters and digits are taken for letters and numbers",
        (_cut_by(lambda text: split(text, ascii_kind)),),
    ),
    Mistake(
        "tokenizer-digits-alone",
        "every digit is a word of its own",
        (
            _cut_by(partial(in_digits, size=1, space=False)),
            _cut_by(partial(in_digits, size=1, space=True)),
        ),
    ),
    Mistake(
        "tokenizer-digits-in-threes",
        "numbers are cut into groups of three digits, as GPT-4 does",
        (
            _cut_by(partial(in_digits, size=3, space=False)),
            _cut_by(partial(in_digits, size=3, space=True)),
        ),
    ),
    Mistake(
        "tokenizer-no-words",
        "the text is not cut into words before it is merged, or at white space alone",
        (_cut_by(lambda text: [text] if text else []), _cut_by(at_spaces)),
    ),
    Mistake(
        "tokenizer-first-merge-lost",
        "the first merge of vocab.bpe is lost",
        (with_merges(lambda merges: merges[1:]),),
    ),
    Mistake(
        "tokenizer-last-merge-lost",
        "the last merge of vocab.bpe is lost",
        (with_merges(lambda merges: merges[:-1]),),
    ),
    Mistake(
        "tokenizer-first-merge-late",
        "the first merge of vocab.bpe is applied last",
        (with_merges(lambda merges: [*merges[1:], *merges[:1]]),),
    ),
    Mistake(
        "tokenizer-merges-reversed",
        "the merges of vocab.bpe are applied in the opposite order",
        (
            with_merges(lambda merges: merges[::-1]),
            with_merges(lambda merges: merges[::-1], OneByOne),
        ),
    ),
    Mistake(
        "tokenizer-ids-shifted",
        "every id is one too high, or every one too low",
        (_shifted(1), _shifted(-1)),
    ),
)


def _cleaned(text: str) -> str:
    for sign in CLEANED:
        text = text.replace(" ' ", "'") if sign == "'" else text.replace(f" {sign}", sign)
    return text


def _specials_dropped(bpe: BPE, ids: list[int]) -> str:
    dropped = {bpe.encoder[name] for name in specials(bpe)}
    return bpe.decode([token for token in ids if token not in dropped])


DECODING: tuple[Mistake[Decode], ...] = (
    Mistake(
        "tokenizer-cleaned-up",
        "spaces before punctuation are removed (clean_up_tokenization_spaces)",
        (lambda bpe, ids: _cleaned(bpe.decode(ids)),),
    ),
    Mistake(
        "tokenizer-bytes-dropped",
        "bytes that are no UTF-8 are dropped (errors='ignore')",
        (lambda bpe, ids: bpe.decode_bytes(ids).decode(errors="ignore"),),
    ),
    Mistake(
        "tokenizer-bytes-strict",
        "it breaks off wherever bytes are no UTF-8 (errors='strict'), and nowhere else",
        (lambda bpe, ids: bpe.decode_bytes(ids).decode(),),
    ),
    Mistake(
        "tokenizer-special-left-out",
        "special tokens are left out (skip_special_tokens)",
        (_specials_dropped,),
    ),
    Mistake(
        "tokenizer-text-stripped",
        "white space at the ends is stripped",
        (
            lambda bpe, ids: bpe.decode(ids).strip(),
            lambda bpe, ids: bpe.decode(ids).lstrip(),
            lambda bpe, ids: bpe.decode(ids).lstrip(" "),
            lambda bpe, ids: bpe.decode(ids).removeprefix(" "),
        ),
    ),
    Mistake(
        "tokenizer-one-by-one",
        "tokens are decoded one by one, so that a character of several tokens is lost",
        (lambda bpe, ids: "".join(bpe.decode([token]) for token in ids),),
    ),
    Mistake(
        "tokenizer-spaces-between",
        "a space is put between tokens",
        (lambda bpe, ids: " ".join(bpe.decode([token]) for token in ids),),
    ),
    Mistake(
        "tokenizer-latin-1",
        "bytes are taken for characters (Latin-1), not for UTF-8",
        (lambda bpe, ids: bpe.decode_bytes(ids).decode("latin-1"),),
    ),
    Mistake(
        "tokenizer-symbols",
        "symbols are not translated back into bytes",
        (
            lambda bpe, ids: "".join(bpe.decoder[token] for token in ids),
            lambda bpe, ids: " ".join(bpe.decoder[token] for token in ids),
            lambda bpe, ids: "".join(bpe.decoder[token] for token in ids).replace("Ġ", " "),
        ),
    ),
)
