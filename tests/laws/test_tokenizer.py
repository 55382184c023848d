"""The laws of the tokenizer: other people's on two vocabularies, and those with a mistake."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import checkpoint
from subjects import hold, message
from tokenizer_ports import Rust, WithTokenizers, others, released_files

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.checkpoint.vocabulary import load
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.tokenizer import injection as tokenizer_changes
from gpt_verify.laws.tokenizer.check import _other_unicode
from gpt_verify.laws.tokenizer.cuts import pattern
from gpt_verify.laws.tokenizer.hypotheses import DECODING, ENCODING
from gpt_verify.laws.tokenizer.injection import Altered, Change
from gpt_verify.laws.tokenizer.merges import OneByOne
from gpt_verify.laws.tokenizer.texts import BATTERY, is_open, texts, with_one_open
from gpt_verify.port import TOKENIZERS
from gpt_verify.reference import Config
from gpt_verify.reference.bpe import BPE, alphabet, kind, split

BOTH = ["tokenizer.encode", "tokenizer.decode"]
many = settings(max_examples=100, deadline=None)


@cache
def source(name: str) -> Checkpoint:
    """The default checkpoint, or the one whose vocabulary OpenAI released."""
    shipped = open_checkpoint(default_checkpoint())
    if name == "default":
        return shipped
    encoder, merges = released_files()
    sizes = Config(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)
    return dataclasses.replace(shipped, config=sizes, encoder=encoder, merges=merges)


@cache
def correct(name: str) -> dict[str, Any]:
    return others(source(name))


@cache
def vocabulary(name: str = "default") -> BPE:
    return load(source(name))


NAMES = ["transformers", "transformers, slow", "tiktoken", "tokenizers"]


# Correct tokenizers


@pytest.mark.parametrize("law", BOTH)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("files", ["default", "released"])
def test_correct_tokenizers_pass(files: str, name: str, law: str) -> None:
    port = WithTokenizers({name: correct(files)[name]})
    (finding,) = hold(law, port, source(files))
    assert finding.status is Status.PASSED, finding.message
    assert finding.message.startswith(f"{name}: ")
    assert ("same ids" if law.endswith("encode") else "same text") in finding.message


texts_of_any_kind = st.one_of(
    st.text(), st.text(" '\n\t\r\x1c\x85\xa0\u2003.,!?019strevmldSTaé\u0301Ω中😀\u200d<|>")
).map(with_one_open)


@pytest.mark.parametrize("files", ["default", "released"])
@pytest.mark.parametrize("name", NAMES)
@many
@given(text=texts_of_any_kind)
@example("\x00")
@example("a\u1c89b")
@example("<|endoftext|> 's  n't \u2003x")
def test_any_text_is_encoded_alike_and_comes_back(files: str, name: str, text: str) -> None:
    tokenizer, bpe = correct(files)[name], vocabulary(files)
    got = tokenizer.encode(text)
    assert got == bpe.encode(text) or _other_unicode(bpe, text, got)
    assert tokenizer.decode(got) == text == bpe.decode(got)


@pytest.mark.parametrize("files", ["default", "released"])
@pytest.mark.parametrize("name", NAMES)
@many
@given(data=st.data())
def test_any_ids_are_decoded_alike(files: str, name: str, data: st.DataObject) -> None:
    bpe = vocabulary(files)
    ids = data.draw(st.lists(st.integers(0, len(bpe.encoder) - 1), max_size=20))
    assert correct(files)[name].decode(ids) == bpe.decode(ids)


def test_several_tokenizers_make_one_finding_that_names_them() -> None:
    (finding,) = hold("tokenizer.encode", WithTokenizers(correct("default")), source("default"))
    assert finding.message.startswith(f"{', '.join(NAMES)}: ")
    assert list(finding.details["tokenizers"]) == NAMES


# What is not examined


@pytest.mark.parametrize("law", BOTH)
def test_what_is_missing_is_named(law: str, tmp_path: Path) -> None:
    some = WithTokenizers(correct("default"))
    bare = WithTokenizers({})
    bare.withdraw(TOKENIZERS)
    assert said(law, bare) == "no tokenizer"
    assert said(law, WithTokenizers({})) == "no tokenizer"
    (finding,) = hold(law, some, checkpoint())
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "the checkpoint has no vocabulary"
    damaged = tmp_path / "vocab.bpe"
    damaged.write_text("#version: 0.2\nĠ t\n")
    (finding,) = hold(law, some, dataclasses.replace(source("default"), merges=damaged))
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message.startswith("the checkpoint's vocabulary cannot be used: ")


def said(law: str, port: WithTokenizers) -> str:
    (finding,) = hold(law, port, source("default"))
    assert finding.status is Status.NOT_EXAMINED
    return finding.message


# The version of Unicode


@pytest.fixture
def crossing(tmp_path: Path) -> Checkpoint:
    """A vocabulary whose merges join ``a`` to the first byte of some characters: whether a piece
    is cut between the two shows in the ids."""
    characters = ["\u1c89", "\U00010d40", "\u0237", "\u0434", "\u03b1"]
    firsts = dict.fromkeys(alphabet()[c.encode()[0]] for c in characters)
    merges = [("a", first) for first in firsts] + [("1", first) for first in firsts]
    symbols = [*alphabet().values(), *("".join(pair) for pair in merges)]
    (tmp_path / "encoder.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    (tmp_path / "vocab.bpe").write_text(f"#version: 0.2\n{lines}")
    sizes = Config(n_vocab=len(symbols), n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    return dataclasses.replace(
        source("default"),
        config=sizes,
        encoder=tmp_path / "encoder.json",
        merges=tmp_path / "vocab.bpe",
    )


class Knows:
    """A tokenizer with a Unicode of its own."""

    def __init__(self, bpe: BPE, kind_of: Callable[[str], str]) -> None:
        self.encode = lambda text: bpe.encode_pieces(split(text, kind_of))
        self.decode = bpe.decode


def of_2002(character: str) -> str:
    """Unicode 3.2."""
    known = unicodedata.ucd_3_2_0.category(character) != "Cn" or kind(character) == " "
    return kind(character) if known else "?"


def of_2024(character: str) -> str:
    """Unicode 16, as far as the characters of this file go."""
    return {"\u1c89": "L", "\U00010d40": "N"}.get(character) or kind(character)


def without_cyrillic(character: str) -> str:
    """No Unicode at all."""
    return "?" if "\u0400" <= character <= "\u04ff" else kind(character)


def held(kind_of: Callable[[str], str], files: Checkpoint) -> Finding:
    port = WithTokenizers({"ours": Knows(load(files), kind_of)})
    (finding,) = hold("tokenizer.encode", port, files)
    return finding


def test_what_versions_of_unicode_part_on_is_open() -> None:
    assert all(map(is_open, "\u1c89\U00010d40\u0237\u0378"))
    assert not any(map(is_open, "aZé中1½٣ \u3000!\u0301\x00\ufffe\U0010ffff\ufdd0"))
    assert not is_open("😀"), "a sign that an older version does not know is a sign to both"


def test_an_older_unicode_is_reported_and_no_fault(crossing: Checkpoint) -> None:
    finding = held(of_2002, crossing)
    assert finding.status is Status.PASSED, finding.message
    assert "U+0237" in finding.message
    assert f"another Unicode than this Python's {unicodedata.unidata_version}" in finding.message
    assert "which the definition leaves open" in finding.message


def test_a_newer_unicode_is_reported_and_no_fault(crossing: Checkpoint) -> None:
    finding = held(of_2024, crossing)
    assert finding.status is Status.PASSED, finding.message
    news = unicodedata.category("\u1c89") == "Cn"  # to this Python
    assert ("U+1C89" in finding.message) == news
    assert ("which the definition leaves open" in finding.message) == news


def test_the_kinds_of_tokenizers_are_those_of_some_unicode(crossing: Checkpoint) -> None:
    """``tokenizers`` 0.22 and 0.23 know U+1C89 (2024); Python 3.11 does not."""
    (finding,) = hold("tokenizer.encode", WithTokenizers({"tokenizers": Rust(crossing)}), crossing)
    assert finding.status is Status.PASSED, finding.message


def test_what_no_unicode_explains_is_a_fault(crossing: Checkpoint) -> None:
    finding = held(without_cyrillic, crossing)
    assert finding.status is Status.FAILED
    assert "or words are cut further" in finding.message


@many
@given(st.text())
def test_a_text_has_at_most_one_open_character(text: str) -> None:
    kept = with_one_open(text)
    assert len({c for c in kept if is_open(c)}) <= 1
    kept.encode()


# Mistakes

#: Fault of the catalogue → the words that it is refuted with.
ENCODED = {
    "prefix-space": "a space is put before the text (add_prefix_space)",
    "lower-case": "the text is lower-cased",
    "nfc": "the text is normalised (NFC)",
    "nfd": "the text is normalised (NFD)",
    "nfkc": "the text is normalised (NFKC)",
    "nfkd": "the text is normalised (NFKD)",
    "lower-case-nfkc": "the text is lower-cased and normalised (NFKC)",
    "stripped": "white space at the ends is stripped",
    "spaces-joined": "runs of white space are made one space",
    "line-ends": r"line ends \r\n are made \n",
    "special-taken": "a special token in the text is taken for the token",
    "special-refused": "raised ValueError: Encountered text corresponding to disallowed special "
    "token: every text with a special token in it is refused, and no other",
    "token-before": "2002 ('<|endoftext|>') is added before every text",
    "token-after": "2002 ('<|endoftext|>') is added after every text",
    "no-lookahead": r"\s+(?!\S) is missing from the pattern",
    "no-contractions": "contractions ('s, 't, …) are not cut off",
    "capital-contractions": "contractions in capitals ('S, 'T, …) are cut off too",
    "no-space-before": "the space before a word is cut off from it",
    "ascii-letters": "only ASCII letters and digits are taken for letters and numbers",
    "digits-alone": "every digit is a word of its own",
    "digits-in-threes": "numbers are cut into groups of three digits",
    "no-words": "the text is not cut into words before it is merged",
    "words-otherwise": "the text is cut into words otherwise than by GPT-2's pattern",
    "first-merge-lost": "the first merge of vocab.bpe is lost",
    "last-merge-lost": "the last merge of vocab.bpe is lost",
    "merge-lost": "the merge y ri of vocab.bpe, number 874, is lost",
    "first-merge-late": "the first merge of vocab.bpe is applied last",
    "merges-reversed": "applied in the opposite order",
    "ids-shifted": "every id is one too high, or every one too low",
    "ids-unknown": "ids that no token has",
}
DECODED = {
    "cleaned-up": "spaces before punctuation are removed (clean_up_tokenization_spaces)",
    "bytes-dropped": "bytes that are no UTF-8 are dropped (errors='ignore')",
    "bytes-strict": "raised UnicodeDecodeError: 'utf-8' codec can't decode byte",
    "one-by-one": "tokens are decoded one by one",
    "spaces-between": "a space is put between tokens",
    "special-left-out": "special tokens are left out (skip_special_tokens)",
    "text-stripped": "white space at the ends is stripped",
    "latin-1": "bytes are taken for characters (Latin-1)",
    "symbols": "symbols are not translated back into bytes",
}


#: The default vocabulary was learnt from a text of plain English without digits: no merge shows how
#: other words are cut.
RELEASED_ONLY = {"digits-alone", "digits-in-threes", "capital-contractions", "ascii-letters"}


def files_for(name: str) -> str:
    return "released" if name in RELEASED_ONLY else "default"


def altered(name: str, files: str | None = None) -> WithTokenizers:
    """A port with one tokenizer, which has the mistake."""
    port = WithTokenizers({})
    CATALOGUE[f"tokenizer-{name}"].put_around(port, source(files or files_for(name)))
    return port


def test_every_fault_of_the_catalogue_is_here() -> None:
    family = {name: f.law for name, f in CATALOGUE.items() if f.family == "tokenizer"}
    laws = dict.fromkeys(ENCODED, "tokenizer.encode") | dict.fromkeys(DECODED, "tokenizer.decode")
    assert family == {f"tokenizer-{name}": law for name, law in laws.items()}


@pytest.mark.parametrize("name", ENCODED)
def test_a_mistake_in_encoding_is_refuted_by_name(name: str) -> None:
    port = altered(name)
    findings = hold("tokenizer.encode", port, source(files_for(name)))
    assert ENCODED[name] in message(findings, Status.FAILED), findings[0].message
    assert findings[0].message.startswith("tokenizers: encode(")
    assert findings[0].fault == f"tokenizer-{name}"
    only_this_direction("tokenizer.decode", port, files_for(name))


@pytest.mark.parametrize("name", DECODED)
def test_a_mistake_in_decoding_is_refuted_by_name(name: str) -> None:
    port = altered(name)
    findings = hold("tokenizer.decode", port, source("default"))
    assert DECODED[name] in message(findings, Status.FAILED), findings[0].message
    assert findings[0].message.startswith("tokenizers: decode(")
    assert findings[0].fault == f"tokenizer-{name}"
    only_this_direction("tokenizer.encode", port)


def _without_accents(tokenizer: Any, bpe: BPE) -> None:
    part = tokenizers.normalizers
    tokenizer.normalizer = part.Sequence([part.NFD(), part.StripAccents()])


def _two_merges_lost(tokenizer: Any, bpe: BPE) -> None:
    tokenizer.model = tokenizers.models.BPE(bpe.encoder, bpe.merges[:700] + bpe.merges[702:])


def _refuses_and_shifts(tokenizer: Any, bpe: BPE) -> Altered:
    def encode(text: str) -> list[int]:
        if "<|endoftext|>" in text:
            raise ValueError("a special token")
        return [i + 1 for i in tokenizer.encode(text).ids]

    return Altered(tokenizer, encode=encode)


def _refuses_long_ones(tokenizer: Any, bpe: BPE) -> Altered:
    def encode(text: str) -> list[int]:
        assert len(text) < 9_000
        return list(tokenizer.encode(text).ids)

    return Altered(tokenizer, encode=encode)


def _upper(tokenizer: Any, bpe: BPE) -> Altered:
    return Altered(tokenizer, decode=lambda ids: bpe.decode(ids).upper())


@pytest.mark.parametrize(
    ("law", "change", "says"),
    [
        ("encode", _without_accents, "these are the ids of another text"),
        ("encode", _two_merges_lost, "bytes are merged otherwise than vocab.bpe says"),
        ("encode", _refuses_and_shifts, "these are the ids of another text"),
        ("encode", _refuses_long_ones, "raised AssertionError"),
        ("decode", _upper, "unexplained"),
    ],
)
def test_what_is_not_known_is_not_named(law: str, change: Change, says: str) -> None:
    port = WithTokenizers({"ours": to_have(change)})
    (finding,) = hold(f"tokenizer.{law}", port, source("default"))
    assert says in message([finding], Status.FAILED), finding.message
    assert finding.fault is None


def to_have(change: Change) -> Altered:
    return tokenizer_changes.altered(change, vocabulary())


def test_of_several_tokenizers_all_that_fail_must_have_the_fault() -> None:
    lower = altered("lower-case").offers()[TOKENIZERS]()["tokenizers"]
    space = altered("prefix-space").offers()[TOKENIZERS]()["tokenizers"]
    plain = correct("default")["tokenizers"]
    for some, fault in (
        ({"a": plain, "b": lower}, "tokenizer-lower-case"),
        ({"a": lower, "b": lower}, "tokenizer-lower-case"),
        ({"a": space, "b": lower}, None),
        ({"a": to_have(_without_accents), "b": lower}, None),
    ):
        (finding,) = hold("tokenizer.encode", WithTokenizers(some), source("default"))
        assert finding.status is Status.FAILED
        assert finding.fault == fault


@pytest.mark.parametrize("files", ["default", "released"])
def test_merges_in_a_wrong_order_are_named_whichever_way_they_are_applied(files: str) -> None:
    """``tokenizers`` does not join every occurrence of a merge first, which only shows there."""
    bpe = vocabulary(files)
    order = bpe.merges[::-1]
    library = altered("merges-reversed", files).offers()[TOKENIZERS]()["tokenizers"]
    original = BPE(bpe.encoder, order)
    text = "hello=========aaaaaaa"
    assert (library.encode(text) == original.encode(text)) == (files == "default")
    assert library.encode(text) == OneByOne(bpe.encoder, order).encode(text)
    for tokenizer in (library, original):
        (finding,) = hold("tokenizer.encode", WithTokenizers({"x": tokenizer}), source(files))
        assert finding.fault == "tokenizer-merges-reversed"


@many
@given(texts_of_any_kind)
def test_in_the_right_order_both_ways_are_one(text: str) -> None:
    bpe = vocabulary()
    assert OneByOne(bpe.encoder, bpe.merges).encode(text) == bpe.encode(text)


def only_this_direction(other: str, port: WithTokenizers, files: str = "default") -> None:
    (finding,) = hold(other, port, source(files))
    assert finding.status is Status.PASSED, finding.message


def test_the_control_is_right_in_both_directions() -> None:
    port = WithTokenizers({"ours": to_have(lambda tokenizer, bpe: None)})
    for law in BOTH:
        only_this_direction(law, port)


def test_the_message_shows_the_shortest_text_and_the_first_difference() -> None:
    bpe = vocabulary()
    findings = hold("tokenizer.encode", altered("special-taken"), source("default"))
    start = bpe.encode("<|")[0]
    words = "encode('<|endoftext|>')[0] = 2002 ('<|endoftext|>'), "
    assert words + f"should be {start} ('<')" in message(findings, Status.FAILED)
    (finding,) = hold("tokenizer.decode", altered("text-stripped"), source("default"))
    space = bpe.encode(" ")[0]
    assert finding.message.startswith(f"tokenizers: decode([{space}])[0:] = '', should be ' ': ")


def test_one_wrong_tokenizer_among_right_ones_is_named() -> None:
    wrong = altered("lower-case").offers()[TOKENIZERS]()["tokenizers"]
    port = WithTokenizers({"right": correct("default")["tokenizers"], "wrong": wrong})
    (finding,) = hold("tokenizer.encode", port, source("default"))
    assert finding.status is Status.FAILED
    assert finding.message.startswith("wrong: encode(") and "right" not in finding.message[:60]
    assert finding.details["tokenizers"]["right"]["wrong"] == 0


def test_every_lost_merge_is_found() -> None:
    """Whichever line of vocab.bpe is lost, its token is a word of the vocabulary."""
    bpe = vocabulary()
    every = texts(bpe, np.random.default_rng(0))
    words = "\n".join(text for name, text in every.items() if name.startswith("words"))
    made = {bpe.decoder[i] for i in bpe.encode(words)}
    whole = [symbols for symbols in map("".join, bpe.merges) if is_text(bpe, symbols)]
    assert len(whole) > 0.9 * len(bpe.merges)
    assert set(whole) <= made


def is_text(bpe: BPE, symbols: str) -> bool:
    """A token that is text, and not white space alone."""
    word = bpe.decode([bpe.encoder[symbols]])
    return "\ufffd" not in word and not word.isspace()


@many
@given(texts_of_any_kind)
@pytest.mark.parametrize(
    ("lacks", "published"),
    [
        ("contractions", r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
        ("lookahead", tokenizer_changes.WORDS + r"|\s+"),
        ("space", tokenizer_changes.WORDS.replace(" ?", "") + r"|\s+(?!\S)|\s+"),
        (None, tokenizer_changes.WORDS + r"|\s+(?!\S)|\s+"),
    ],
)
def test_patterns_that_lack_something_are_what_a_library_makes_of_them(
    lacks: str | None, published: str, text: str
) -> None:
    text = "".join(c for c in text if not is_open(c))
    without = {} if lacks is None else {lacks: False}
    assert list(pattern(text, **without)) == regex.findall(published, text)


def test_every_mistake_that_can_be_named_is_injected() -> None:
    """The others are told by what the ids show."""
    named = [mistake.fault for mistake in (*ENCODING, *DECODING)]
    shown = {"token-before", "token-after", "merge-lost", "ids-unknown", "words-otherwise"}
    family = [name for name, fault in CATALOGUE.items() if fault.family == "tokenizer"]
    assert sorted([*named, *(f"tokenizer-{name}" for name in shown)]) == sorted(family)


def test_the_battery_holds_what_it_is_named_for() -> None:
    assert len(BATTERY["one long word"]) == 10_000
    assert "\x00" in BATTERY["NUL and controls"] and "\ufffd" in BATTERY["replacement"]
    assert {ord(c) for c in BATTERY["every byte"]} == set(range(256))
    assert all(text == with_one_open(text) for text in BATTERY.values()), "nothing is replaced"
