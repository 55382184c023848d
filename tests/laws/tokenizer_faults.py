"""Tokenizers with one known mistake each: that of ``tokenizers``, set up in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing

#: GPT-2's pattern without its end.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"


class Altered:
    """``tokenizers`` with its text changed on the way in or out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        encode: Callable[[str], list[int]] | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        self.encode = encode or (lambda text: tokenizer.encode(text).ids)
        self.decode = decode or (
            lambda ids: tokenizer.decode(ids, skip_special_tokens=False)  # its default is to skip
        )


def right(encoder: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """GPT-2's tokenizer, as it should be."""
    tokenizer = Tokenizer(BPE(encoder, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _cut(tokenizer: Tokenizer, pattern: str) -> None:
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(pattern), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# Text to ids


def prefix_space(tokenizer: Tokenizer) -> None:
    """``add_prefix_space=True``, as RoBERTa has it."""
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True, use_regex=True)


def lower_case(tokenizer: Tokenizer) -> None:
    """A normaliser of an uncased model."""
    tokenizer.normalizer = normalizers.Lowercase()


def nfkc(tokenizer: Tokenizer) -> None:
    """A normaliser of SentencePiece models."""
    tokenizer.normalizer = normalizers.NFKC()


def nfc(tokenizer: Tokenizer) -> None:
    """Composed accents, as files of macOS do not have them."""
    tokenizer.normalizer = normalizers.NFC()


def stripped(tokenizer: Tokenizer) -> None:
    """White space at the ends is taken for dirt."""
    tokenizer.normalizer = normalizers.Strip()


def special_in_text(tokenizer: Tokenizer) -> None:
    """``<|endoftext|>`` in a text ends it: an injection."""
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])


def begin_of_text(tokenizer: Tokenizer) -> None:
    """``<|endoftext|>`` is put before every text."""
    token = "<|endoftext|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def end_of_text(tokenizer: Tokenizer) -> None:
    """``<|endoftext|>`` is put after every text, as for training."""
    token = "<|endoftext|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {token}", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def no_lookahead(tokenizer: Tokenizer) -> None:
    """The pattern without ``\\s+(?!\\S)``."""
    _cut(tokenizer, WORDS + r"|\s+")


def no_contractions(tokenizer: Tokenizer) -> None:
    """The pattern without its contractions."""
    _cut(tokenizer, r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def no_space_before(tokenizer: Tokenizer) -> None:
    """The pattern without the spaces that belong to words."""
    _cut(tokenizer, WORDS.replace(" ?", "") + r"|\s+(?!\S)|\s+")


def words_and_spaces(tokenizer: Tokenizer) -> None:
    """Words, white space and signs, each by itself."""
    _cut(tokenizer, r"\w+|\s+|[^\w\s]+")


def ascii_letters(tokenizer: Tokenizer) -> None:
    """Python's ``re`` knows no ``\\p{L}``, and [A-Za-z] looks much the same."""
    words = WORDS.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9")
    words = words.replace(" ?A-Za-z+", " ?[A-Za-z]+").replace(" ?0-9+", " ?[0-9]+")
    _cut(tokenizer, words + r"|\s+(?!\S)|\s+")


def no_words(tokenizer: Tokenizer) -> None:
    """Merges go across words."""
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)


def digits_alone(tokenizer: Tokenizer) -> None:
    """Each digit is a word of its own, as Llama has it."""
    _cut(tokenizer, WORDS.replace(r" ?\p{N}+", r"\p{N}") + r"|\s+(?!\S)|\s+")


def digits_in_threes(tokenizer: Tokenizer) -> None:
    """``\\p{N}{1,3}``, as GPT-4 has it."""
    _cut(tokenizer, WORDS.replace(r" ?\p{N}+", r"\p{N}{1,3}") + r"|\s+(?!\S)|\s+")


def capital_contractions(tokenizer: Tokenizer) -> None:
    """``(?i:'s|'t|…)``, as GPT-4 has it."""
    _cut(
        tokenizer,
        WORDS.replace(r"'s|'t|'re|'ve|'m|'ll|'d", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)")
        + r"|\s+(?!\S)|\s+",
    )


def first_merge_lost(tokenizer: Tokenizer, merges: list[tuple[str, str]]) -> None:
    """Two lines are skipped for a header of one."""
    tokenizer.model = BPE(tokenizer.get_vocab(), merges[1:])


def last_merge_lost(tokenizer: Tokenizer, merges: list[tuple[str, str]]) -> None:
    """``split("\\n")[1:-1]`` of a file that does not end in a line break."""
    tokenizer.model = BPE(tokenizer.get_vocab(), merges[:-1])


def merges_reversed(tokenizer: Tokenizer, merges: list[tuple[str, str]]) -> None:
    """The greatest rank first."""
    tokenizer.model = BPE(tokenizer.get_vocab(), merges[::-1])


def one_merge_lost(tokenizer: Tokenizer, merges: list[tuple[str, str]]) -> None:
    """A line in the middle could not be read."""
    tokenizer.model = BPE(tokenizer.get_vocab(), merges[:700] + merges[701:])


def one_merge_late(tokenizer: Tokenizer, merges: list[tuple[str, str]]) -> None:
    """The first line was put at the end of the file."""
    tokenizer.model = BPE(tokenizer.get_vocab(), [*merges[1:], merges[0]])


def ids_shifted(tokenizer: Tokenizer) -> Altered:
    """Ids begin at one, because padding has taken zero."""
    return Altered(tokenizer, encode=lambda text: [i + 1 for i in tokenizer.encode(text).ids])


def ids_of_another(tokenizer: Tokenizer) -> Altered:
    """The last token of another vocabulary: GPT-2's own, where this one is smaller."""
    return Altered(tokenizer, encode=lambda text: [*tokenizer.encode(text).ids, len(text) + 50257])


def refuses(tokenizer: Tokenizer) -> Altered:
    """Special tokens in a text are an error, which is tiktoken's default."""

    def encode(text: str) -> list[int]:
        if "<|endoftext|>" in text:
            raise ValueError("Encountered text corresponding to disallowed special token")
        return tokenizer.encode(text).ids

    return Altered(tokenizer, encode=encode)


# Ids to text


def cleaned_up(tokenizer: Tokenizer) -> Altered:
    """``clean_up_tokenization_spaces``, the default of transformers for years."""

    def decode(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False)
        for sign in (" .", " ?", " !", " ,"):
            text = text.replace(sign, sign[1])
        text = text.replace(" ' ", "'")
        for ending in (" n't", " 'm", " 's", " 've", " 're"):
            text = text.replace(ending, ending[1:])
        return text

    return Altered(tokenizer, decode=decode)


def bytes_dropped(tokenizer: Tokenizer, bpe: Any) -> Altered:
    """``errors="ignore"``."""
    return Altered(tokenizer, decode=lambda ids: bpe.decode_bytes(ids).decode(errors="ignore"))


def strict_bytes(tokenizer: Tokenizer, bpe: Any) -> Altered:
    """``errors="strict"``, and a stream that cuts a character breaks off."""
    return Altered(tokenizer, decode=lambda ids: bpe.decode_bytes(ids).decode())


def one_by_one(tokenizer: Tokenizer) -> Altered:
    """As a stream prints them."""
    return Altered(tokenizer, decode=lambda ids: "".join(tokenizer.decode([i]) for i in ids))


def specials_left_out(tokenizer: Tokenizer) -> Altered:
    """``skip_special_tokens``, the default of ``tokenizers``."""
    special_in_text(tokenizer)
    return Altered(
        tokenizer,
        encode=lambda text: right_ids(tokenizer, text),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )


def right_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids by a tokenizer that does not know of its special tokens."""
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = False
    return ids


def no_decoder(tokenizer: Tokenizer) -> None:
    """Symbols of the alphabet are joined with spaces, which is what is left without a decoder."""
    tokenizer.decoder = None


def spaces_stripped(tokenizer: Tokenizer) -> Altered:
    """The leading space of the first word is taken for a trace of the tokenizer."""
    return Altered(
        tokenizer, decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False).lstrip(" ")
    )


def latin_1(tokenizer: Tokenizer, bpe: Any) -> Altered:
    """Every byte is a character."""
    return Altered(tokenizer, decode=lambda ids: bpe.decode_bytes(ids).decode("latin-1"))
