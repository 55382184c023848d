"""Mistakes with a tokenizer: that of the library ``tokenizers``, set up otherwise than GPT-2's."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from gpt_verify.faults.later import tokenizers
from gpt_verify.reference.bpe import BPE, alphabet

#: GPT-2's pattern without its end, and its end.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
SPACES = r"|\s+(?!\S)|\s+"
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"

Merges = list[tuple[str, str]]


class Altered:
    """``tokenizers`` with its text changed on the way in or out."""

    def __init__(
        self,
        tokenizer: Any,
        encode: Callable[[str], list[int]] | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        self.encode = encode or (lambda text: tokenizer.encode(text).ids)
        self.decode = decode or (
            lambda ids: tokenizer.decode(ids, skip_special_tokens=False)  # its default is to skip
        )


#: Sets up a correct tokenizer wrongly, or hands out another one in its place.
Change = Callable[[Any, BPE], Altered | None]


def right(bpe: BPE) -> Any:
    """GPT-2's tokenizer, as it should be."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(bpe.encoder, bpe.merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def altered(change: Change, bpe: BPE) -> Altered:
    """The tokenizer with a mistake."""
    tokenizer = right(bpe)
    return change(tokenizer, bpe) or Altered(tokenizer)


def _special(bpe: BPE) -> str | None:
    """The last token that no merge makes and that is no byte: ``<|endoftext|>``."""
    made = {*alphabet().values(), *(left + right for left, right in bpe.merges)}
    return next((token for token in reversed(list(bpe.encoder)) if token not in made), None)


# Text to ids


def prefix_space(tokenizer: Any, bpe: BPE) -> None:
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=True, use_regex=True
    )


def normalised(*names: str) -> Change:
    def change(tokenizer: Any, bpe: BPE) -> None:
        steps = [getattr(tokenizers.normalizers, name)() for name in names]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)

    return change


def read_as(change: Callable[[str], str]) -> Change:
    """The text is changed before it comes to the tokenizer."""
    return lambda tokenizer, bpe: Altered(
        tokenizer, encode=lambda text: list(tokenizer.encode(change(text)).ids)
    )


def universal_newlines(text: str) -> str:
    """As a file is read."""
    return io.StringIO(text, newline=None).read()


def special_taken(tokenizer: Any, bpe: BPE) -> None:
    if special := _special(bpe):
        tokenizer.add_special_tokens([tokenizers.AddedToken(special, special=True)])


def special_refused(tokenizer: Any, bpe: BPE) -> Altered:
    special = _special(bpe)

    def encode(text: str) -> list[int]:
        if special and special in text:
            raise ValueError("Encountered text corresponding to disallowed special token")
        return list(tokenizer.encode(text).ids)

    return Altered(tokenizer, encode=encode)


def template(template: str) -> Change:
    """What is put around a text; ``$A`` is the text."""

    def change(tokenizer: Any, bpe: BPE) -> None:
        if special := _special(bpe):
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single=template.format(special=special),
                special_tokens=[(special, bpe.encoder[special])],
            )

    return change


def cut(pattern: str) -> Change:
    def change(tokenizer: Any, bpe: BPE) -> None:
        part = tokenizers.pre_tokenizers
        tokenizer.pre_tokenizer = part.Sequence(
            [
                part.Split(tokenizers.Regex(pattern), behavior="isolated"),
                part.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return change


def no_words(tokenizer: Any, bpe: BPE) -> None:
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )


def merged(change: Callable[[Merges], Merges]) -> Change:
    def with_merges(tokenizer: Any, bpe: BPE) -> None:
        tokenizer.model = tokenizers.models.BPE(bpe.encoder, change(bpe.merges))

    return with_merges


def one_lost(merges: Merges) -> Merges:
    middle = len(merges) // 2
    return merges[:middle] + merges[middle + 1 :]


def shifted(tokenizer: Any, bpe: BPE) -> Altered:
    return Altered(tokenizer, encode=lambda text: [i + 1 for i in tokenizer.encode(text).ids])


def padded(tokenizer: Any, bpe: BPE) -> None:
    tokenizer.enable_padding(pad_id=len(bpe.encoder), pad_token="[PAD]", pad_to_multiple_of=8)


# Ids to text


def shown_as(change: Callable[[str], str]) -> Change:
    """The text is changed when it comes from the tokenizer."""
    return lambda tokenizer, bpe: Altered(
        tokenizer, decode=lambda ids: change(tokenizer.decode(ids, skip_special_tokens=False))
    )


def cleaned_up(text: str) -> str:
    for sign in (" .", " ?", " !", " ,"):
        text = text.replace(sign, sign[1])
    text = text.replace(" ' ", "'")
    for ending in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(ending, ending[1:])
    return text


def as_text(encoding: str, errors: str = "strict") -> Change:
    return lambda tokenizer, bpe: Altered(
        tokenizer, decode=lambda ids: bpe.decode_bytes(ids).decode(encoding, errors)
    )


def joined(between: str) -> Change:
    return lambda tokenizer, bpe: Altered(
        tokenizer, decode=lambda ids: between.join(tokenizer.decode([i]) for i in ids)
    )


def specials_left_out(tokenizer: Any, bpe: BPE) -> Altered:
    plain = right(bpe)
    special_taken(tokenizer, bpe)
    return Altered(
        tokenizer,
        encode=lambda text: list(plain.encode(text).ids),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )


def no_decoder(tokenizer: Any, bpe: BPE) -> None:
    tokenizer.decoder = None
