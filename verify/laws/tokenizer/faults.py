"""Faults of the tokenizer: a port that computes correct logits, of other tokens than the text's.

The reference makes the same mistakes in ``gpt_verify.laws.tokenizer.hypotheses``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gpt_verify.laws.tokenizer.injection as to
from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.vocabulary import load
from gpt_verify.faults.fault import AroundPort, Fault
from gpt_verify.port import TOKENIZERS


def _inject(change: to.Change, port: Any, checkpoint: Checkpoint) -> None:
    port.offer(TOKENIZERS, lambda: {"tokenizers": to.altered(change, load(checkpoint))})


def _fault(
    law: str, name: str, summary: str, change: to.Change, seen: str = "", needs: str = ""
) -> Fault:
    return Fault(
        f"tokenizer-{name}",
        "tokenizer",
        summary,
        seen,
        AroundPort(partial(_inject, change)),
        law=law,
        needs=needs,
    )


_encode, _decode = partial(_fault, "tokenizer.encode"), partial(_fault, "tokenizer.decode")

_SPECIAL = "a special token in the vocabulary"
_MERGES = "merges in what is cut otherwise: digits, capitals, or letters of other scripts"

FAULTS = (
    _encode(
        "prefix-space",
        "puts a space before the text (add_prefix_space)",
        to.prefix_space,
        "RoBERTa's tokenizer",
    ),
    _encode(
        "lower-case",
        "lower-cases the text",
        to.normalised("Lowercase"),
        "tokenizers of uncased models",
    ),
    _encode(
        "nfc",
        "normalises the text (NFC), and so composes its accents",
        to.normalised("NFC"),
    ),
    _encode(
        "nfd",
        "normalises the text (NFD), and so takes its accents apart",
        to.normalised("NFD"),
        "names of files on macOS",
    ),
    _encode(
        "nfkc",
        "normalises the text (NFKC)",
        to.normalised("NFKC"),
        "SentencePiece's default",
    ),
    _encode("nfkd", "normalises the text (NFKD)", to.normalised("NFKD")),
    _encode(
        "lower-case-nfkc",
        "normalises the text (NFKC) and lower-cases it",
        to.normalised("NFKC", "Lowercase"),
        "SentencePiece's nmt_nfkc_cf",
    ),
    _encode("stripped", "strips white space from the ends of the text", to.normalised("Strip")),
    _encode(
        "spaces-joined",
        "makes one space of every run of white space",
        to.read_as(lambda text: " ".join(text.split())),
    ),
    _encode(
        "line-ends",
        "makes one line feed of a carriage return and a line feed",
        to.read_as(to.universal_newlines),
        "open() of a file in Python",
    ),
    _encode(
        "special-taken",
        "takes a special token that is written in the text for the token",
        to.special_taken,
        "transformers, unless split_special_tokens is set",
        _SPECIAL,
    ),
    _encode(
        "special-refused",
        "refuses a text in which a special token is written",
        to.special_refused,
        "tiktoken's encode()",
        _SPECIAL,
    ),
    _encode(
        "token-before",
        "puts a token before every text",
        to.template("{special} $A"),
        "add_bos_token of transformers",
        _SPECIAL,
    ),
    _encode(
        "token-after",
        "puts a token after every text, as for training",
        to.template("$A {special}"),
        needs=_SPECIAL,
    ),
    _encode(
        "no-lookahead",
        r"leaves \s+(?!\S) out of its pattern, so that white space leaves no space to a word",
        to.cut(to.WORDS + r"|\s+"),
    ),
    _encode(
        "no-contractions",
        "does not cut off contractions ('s, 't, …)",
        to.cut(to.WORDS.removeprefix(f"{to.CONTRACTIONS}|") + to.SPACES),
    ),
    _encode(
        "capital-contractions",
        "cuts off contractions in capitals too ('S, 'T, …)",
        to.cut(to.WORDS.replace(to.CONTRACTIONS, f"(?i:{to.CONTRACTIONS})") + to.SPACES),
        "cl100k_base, GPT-4's",
        _MERGES,
    ),
    _encode(
        "no-space-before",
        "cuts the space before a word off from it",
        to.cut(to.WORDS.replace(" ?", "") + to.SPACES),
    ),
    _encode(
        "ascii-letters",
        "takes only ASCII letters and digits for letters and numbers",
        to.cut(
            to.WORDS.replace(r"\p{L}", "[A-Za-z]")
            .replace(r"\p{N}", "[0-9]")
            .replace(r"[^\s[A-Za-z][0-9]]", r"[^\sA-Za-z0-9]")
            + to.SPACES
        ),
        r"[A-Za-z] for \p{L}, which Python's re does not know",
        _MERGES,
    ),
    _encode(
        "digits-alone",
        "makes every digit a word of its own",
        to.cut(to.WORDS.replace(r" ?\p{N}+", r"\p{N}") + to.SPACES),
        "Llama's tokenizer",
        _MERGES,
    ),
    _encode(
        "digits-in-threes",
        "cuts numbers into groups of three digits",
        to.cut(to.WORDS.replace(r" ?\p{N}+", r"\p{N}{1,3}") + to.SPACES),
        "cl100k_base, GPT-4's",
        _MERGES,
    ),
    _encode(
        "no-words",
        "does not cut the text into words before it merges, or not where letters and signs meet",
        to.no_words,
    ),
    _encode(
        "words-otherwise",
        "cuts the text into words by another pattern than GPT-2's, so that tokens go across words",
        to.cut(r"\s?\S+|\s+"),
    ),
    _encode(
        "first-merge-lost",
        "loses the first merge of vocab.bpe, by skipping one line too many",
        to.merged(lambda merges: merges[1:]),
    ),
    _encode(
        "last-merge-lost",
        "loses the last merge of vocab.bpe",
        to.merged(lambda merges: merges[:-1]),
        'split("\\n")[1:-1] of a file that does not end in a line feed',
    ),
    _encode("merge-lost", "loses one merge of vocab.bpe", to.merged(to.one_lost)),
    _encode(
        "first-merge-late",
        "applies the first merge of vocab.bpe after all others",
        to.merged(lambda merges: [*merges[1:], merges[0]]),
    ),
    _encode(
        "merges-reversed",
        "applies the merges of vocab.bpe in the opposite order",
        to.merged(lambda merges: merges[::-1]),
    ),
    _encode("ids-shifted", "gives ids that are one too high or too low", to.shifted),
    _encode(
        "ids-unknown",
        "gives ids that no token of the vocabulary has, such as one of its own for padding",
        to.padded,
    ),
    _decode(
        "cleaned-up",
        "removes spaces before punctuation (clean_up_tokenization_spaces)",
        to.shown_as(to.cleaned_up),
        "transformers' default for years",
    ),
    _decode(
        "bytes-dropped",
        "drops bytes that are no UTF-8 (errors='ignore')",
        to.as_text("utf-8", "ignore"),
    ),
    _decode(
        "bytes-strict",
        "breaks off at bytes that are no UTF-8 (errors='strict')",
        to.as_text("utf-8"),
    ),
    _decode(
        "one-by-one",
        "decodes token by token, so that a character of several tokens is lost",
        to.joined(""),
        "streams that print each token as it comes",
    ),
    _decode(
        "spaces-between",
        "puts a space between tokens",
        to.joined(" "),
    ),
    _decode(
        "special-left-out",
        "leaves special tokens out (skip_special_tokens)",
        to.specials_left_out,
        "the default of tokenizers",
        _SPECIAL,
    ),
    _decode(
        "text-stripped",
        "strips white space from the ends of the text",
        to.shown_as(lambda text: text.lstrip(" ")),
    ),
    _decode(
        "latin-1",
        "takes bytes for characters (Latin-1), not for UTF-8",
        to.as_text("latin-1"),
    ),
    _decode(
        "symbols",
        "does not translate the symbols of vocab.bpe back into bytes",
        to.no_decoder,
    ),
)
