"""Byte-level BPE beside other people's: ``tokenizers``, transformers, and GPT-2's own pattern."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_verify.reference.bpe import BPE, WHITE_SPACE, alphabet, kind, split

many = settings(max_examples=150, deadline=None)

#: As published: gpt-2 ``src/encoder.py:53``.
PATTERN = regex.compile(
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)
#: Where pieces begin and end for a reason: spaces of all kinds, contractions, marks, numbers.
EDGES = (
    " \n\t\r\x1c\x85\xa0\u2003\u3000'\u2019strevmldSTaé\u0301Ωß中٣½Ⅷ0,.😀\u200d\ufeff\U000e0041_"
)
SAMPLES = [
    "",
    " ",
    "hello world",
    "It's he'll they've I'm we'd you're don't 's 'S ''s '' ' s",
    "  two  spaces   three\n\n\nlines \n \t end  ",
    "tabs\tand\r\nreturns\x1cseparators\x1f\x85next",
    "3.14 and 1,000,000 or ½ Ⅷ ٣٤ x2y3",
    "naïve café cafe\u0301 Ελλάδα Привет 中文字 日本語 العربية हिन्दी",
    "😀👍🏽👩‍👩‍👧‍👦 🇫🇷 ☃\ufe0f",
    "a" * 40 + " " * 40 + "!" * 40,
    "\x00\x7f\x80\xad\xff\u0100\u0143\ufffd\U0010ffff",
    "def f(x):\n    return x**2  # squares\n",
    "no\xa0break \xa0 spaces\u3000here",
]


def known(text: str) -> str:
    """Without the characters that this Python's Unicode has not heard of: databases differ."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cn", "Cs"))


texts = st.one_of(st.text(), st.text(EDGES, max_size=40)).map(known)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A vocabulary as ``tokenizers`` learns it, in files as it writes them."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([s for s in SAMPLES if s] * 5, vocab_size=500, show_progress=False)
    directory = tmp_path_factory.mktemp("bpe")
    vocabulary, merges = trained.save_model(str(directory))
    return Path(vocabulary), Path(merges)


@pytest.fixture(scope="module")
def ours(files: tuple[Path, Path]) -> BPE:
    encoder = json.loads(files[0].read_text("utf-8"))
    lines = files[1].read_text("utf-8").split("\n")[1:-1]
    return BPE(encoder, [(a, b) for a, b in (line.split(" ") for line in lines)])


@pytest.fixture(scope="module", params=["tokenizers", "transformers"])
def theirs(request: Any, files: tuple[Path, Path]) -> tuple[Callable[[str], list[int]], Any]:
    """(encode, decode) of somebody else's implementation, from the same files."""
    vocabulary, merges = map(str, files)
    if request.param == "tokenizers":
        from tokenizers import ByteLevelBPETokenizer

        rust = ByteLevelBPETokenizer(vocabulary, merges)
        return lambda text: rust.encode(text).ids, rust.decode
    from transformers import GPT2Tokenizer

    gpt2 = GPT2Tokenizer(vocab=vocabulary, merges=merges)
    return gpt2.encode, lambda ids: gpt2.decode(ids, clean_up_tokenization_spaces=False)


# The alphabet


def test_the_alphabet_is_gpt2s():
    """Published facts: space is Ġ, newline Ċ, tab ĉ, NUL Ā; visible Latin-1 stands for itself."""
    table = alphabet()
    assert sorted(table) == list(range(256))
    assert len(set(table.values())) == 256
    assert [table[ord(c)] for c in " \n\t\x00\x7f\xa0\xad"] == list("ĠĊĉĀġłŃ")
    assert all(table[ord(c)] == c for c in "!~azAZ09'¡¬®ÿ")
    assert not any(c.isspace() or not c.isprintable() for c in table.values())


def test_the_alphabet_is_that_of_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(alphabet().values()) == sorted(ByteLevel.alphabet())


# Splitting


def test_every_character_is_of_the_kind_that_the_published_pattern_takes_it_for():
    """All of Unicode, but for what this Python's database does not know yet."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    space, letters, numbers = (
        set(regex.findall(pattern, everything)) for pattern in (r"\s", r"\p{L}", r"\p{N}")
    )
    assert space == WHITE_SPACE
    different = [
        c
        for c in everything
        if kind(c) != (" " if c in space else "L" if c in letters else "N" if c in numbers else "?")
    ]
    assert {unicodedata.category(c) for c in different} <= {"Cn"}


@many
@given(texts)
@example("x  y")
@example("a\tb")
@example(" 's")
@example("''s")
@example("a\u2003 b")
def test_split_finds_what_the_published_pattern_finds(text):
    pieces = list(split(text))
    assert pieces == PATTERN.findall(text)
    assert "".join(pieces) == text


# Encoding and decoding


@pytest.mark.parametrize("text", SAMPLES)
def test_samples_are_encoded_as_by_others(ours, theirs, text):
    encode, decode = theirs
    ids = ours.encode(text)
    assert ids == encode(text)
    assert ours.decode(ids) == text == decode(ids)


@many
@given(text=texts)
def test_any_text_is_encoded_as_by_others(ours, theirs, text):
    encode, decode = theirs
    ids = ours.encode(text)
    assert ids == encode(text)
    assert ours.decode(ids) == text == decode(ids)


@many
@given(data=st.data())
def test_any_ids_are_decoded_as_by_others(ours, theirs, data):
    """Random ids cut characters in two; what is no UTF-8 becomes U+FFFD, as many as elsewhere."""
    _encode, decode = theirs
    ids = data.draw(st.lists(st.integers(0, len(ours.encoder) - 1), max_size=20))
    assert ours.decode(ids) == decode(ids)


@many
@given(st.binary())
def test_bytes_that_are_no_text_survive(data):
    bytewise = BPE({symbol: byte for byte, symbol in alphabet().items()}, [])
    assert bytewise.decode_bytes(data) == data
    assert bytewise.decode(data) == data.decode(errors="replace")


def spelt(merges: list[str]) -> BPE:
    """Bytes first, then each merge ``a b`` in order."""
    pairs = [(a, b) for a, b in (merge.split() for merge in merges)]
    symbols = dict.fromkeys([*alphabet().values(), *(a + b for a, b in pairs)])
    return BPE({symbol: i for i, symbol in enumerate(symbols)}, pairs)


def tokens(bpe: BPE, text: str) -> list[str]:
    return [bpe.decoder[i] for i in bpe.encode(text)]


def test_the_earliest_merge_is_applied_everywhere_before_any_other():
    assert tokens(spelt(["b c", "a b"]), "abc") == ["a", "bc"]
    assert tokens(spelt(["a b", "b c"]), "abc") == ["ab", "c"]
    assert tokens(spelt(["a a", "aa a"]), "aaa") == ["aaa"]
    assert tokens(spelt(["a a"]), "aaaaa") == ["aa", "aa", "a"]
    # The second occurrence of `a b` is joined before `ab a` is looked for, although that is
    # earlier in the list: the original makes a whole pass for one merge.
    late = BPE(spelt(["a b", "ab a"]).encoder, [("ab", "a"), ("a", "b")])
    assert tokens(late, "abab") == ["ab", "ab"]


@many
@given(
    st.lists(
        st.sampled_from(["a b", "b a", "a a", "ab a", "a ba", "aa b", "ab ab", "b b"]), unique=True
    ),
    st.text("ab", max_size=24),
)
def test_the_heap_does_what_whole_passes_do(merges, word):
    """Sennrich et al. 2016, algorithm 1, as it is defined: even where merges are out of order."""
    pairs = [(a, b) for a, b in (merge.split() for merge in merges)]
    known_parts = {*"ab", *(a + b for a, b in pairs)}
    pairs = [(a, b) for a, b in pairs if {a, b} <= known_parts]
    symbols = dict.fromkeys([*alphabet().values(), *known_parts])
    bpe = BPE({symbol: i for i, symbol in enumerate(symbols)}, pairs)
    expected = list(word)
    while present := [pair for pair in pairs if pair in set(pairwise(expected))]:
        rest, expected = expected, []
        while rest:
            joined = tuple(rest[:2]) == present[0]
            expected.append("".join(rest[: 1 + joined]))
            rest = rest[1 + joined :]
    assert tokens(bpe, word) == expected


def test_end_of_text_is_text_like_any_other():
    bpe = spelt(["e n", "en d"])
    bpe = BPE({**bpe.encoder, "<|endoftext|>": len(bpe.encoder)}, [("e", "n"), ("en", "d")])
    assert tokens(bpe, "<|endoftext|>") == ["<", "|", "end", *"oftext", "|", ">"]
    assert bpe.decode([len(bpe.encoder) - 1]) == "<|endoftext|>"


def test_a_word_of_100_000_characters_takes_seconds():
    """Scanning the word for each merge would take 10^10 steps; the limit is far from either."""
    doubling = [f"{'a' * 2**n} {'a' * 2**n}" for n in range(8)]
    start = time.process_time()
    ids = spelt(doubling).encode("ab" * 25_000 + "a" * 50_001)
    assert time.process_time() - start < 20
    assert len(ids) == 2 * 25_000 + 50_001 // 256 + bin(50_001 % 256).count("1")


@pytest.mark.parametrize(
    ("change", "merges", "message"),
    [
        ({"Ġ": None}, [], r"byte 0x20 \('Ġ'\) has no token"),
        ({"ab": 5}, [], "two tokens have the same id"),
        ({"a b": 256}, [], "token 'a b' is not spelt in the alphabet of bytes"),
        ({"": 256}, [], "token '' is not spelt"),
        ({"中": 256}, [], "token '中' is not spelt"),
        ({}, [("a", "b")], "merge 'a' 'b': there is no token 'ab'"),
        ({"abc": 256}, [("ab", "c")], "merge 'ab' 'c': there is no token 'ab'"),
        ({"ab": 256}, [("a", "b"), ("a", "b")], "merge 'a' 'b' occurs twice"),
    ],
)
def test_what_is_no_vocabulary_is_refused(change, merges, message):
    encoder: dict[str, Any] = {symbol: byte for byte, symbol in alphabet().items()} | change
    with pytest.raises(ValueError, match=f"^{message}"):
        BPE({symbol: i for symbol, i in encoder.items() if i is not None}, merges)


def test_ids_that_no_token_has_and_lone_surrogates_are_refused():
    bpe = spelt([])
    with pytest.raises(ValueError, match="no token has the id 256"):
        bpe.decode([0, 256])
    with pytest.raises(UnicodeEncodeError):
        bpe.encode("a\ud800")
