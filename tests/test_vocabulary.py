"""The vocabulary of a checkpoint: the shipped one works, and every kind of damage is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.checkpoint.vocabulary import encode, load
from gpt_verify.errors import CheckpointError, UsageError
from gpt_verify.judging.run import Options, chosen_inputs
from gpt_verify.reference import Config
from gpt_verify.reference.bpe import alphabet

SYMBOLS = [*alphabet().values(), "ab", "abc", "<|endoftext|>"]
IDS = {symbol: token for token, symbol in enumerate(SYMBOLS)}
MERGES = "#version: 0.2\na b\nab c\n"
CONFIG = Config(n_vocab=259, n_ctx=7, n_embd=12, n_head=3, n_layer=1)


def beside(directory: Path, ids: Any = IDS, merges: str | bytes = MERGES) -> Checkpoint:
    """A checkpoint of which nothing but the vocabulary is looked at."""
    encoder, vocab = directory / "encoder.json", directory / "vocab.bpe"
    encoder.write_text(ids if isinstance(ids, str) else json.dumps(ids))
    vocab.write_bytes(merges.encode() if isinstance(merges, str) else merges)
    return Checkpoint(directory, "openai", CONFIG, {}, (), encoder, vocab)


def test_a_vocabulary_is_read(tmp_path):
    bpe = load(beside(tmp_path))
    assert bpe.encoder == IDS
    assert bpe.encode("abcab b") == [IDS[s] for s in ("abc", "ab", "Ġ", "b")]
    assert encode(beside(tmp_path), "abcab b") == bpe.encode("abcab b")


def test_text_becomes_the_input_of_a_run(tmp_path):
    (given,) = chosen_inputs(beside(tmp_path), Options(text="abcab b"))
    assert given.tokens.tolist() == [[IDS[s] for s in ("abc", "ab", "Ġ", "b")]]
    for text, message in [("", "0 tokens"), ("a" * 8, "8 tokens")]:
        with pytest.raises(UsageError, match=f"^{message}: the model takes 1 … 7$"):
            chosen_inputs(beside(tmp_path), Options(text=text))


def test_text_that_is_not_unicode_is_refused(tmp_path):
    argument = b"ab\xff".decode("utf-8", "surrogateescape")  # as the command line hands it over
    with pytest.raises(UsageError, match=r"^the text is not valid Unicode at character 2$"):
        encode(beside(tmp_path), argument)


def without(symbol: str) -> dict[str, int]:
    return {key: value for key, value in IDS.items() if key != symbol}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("", "encoder.json: the file is empty"),
        ("{", "encoder.json: not JSON: "),
        ("[]", "encoder.json: not a JSON object"),
        ('{"a": 0, "a": 1}', "encoder.json: key 'a' occurs twice"),
        (IDS | {"ab": 256.0}, "encoder.json: the id of 'ab' is 256.0, not an integer"),
        (IDS | {"ab": "256"}, "encoder.json: the id of 'ab' is '256', not an integer"),
        (IDS | {"ab": True}, "encoder.json: the id of 'ab' is True, not an integer"),
        (IDS | {"ab": 259}, "encoder.json: the id of 'ab' is 259, outside 0 … 258"),
        (IDS | {"ab": -1}, "encoder.json: the id of 'ab' is -1, outside 0 … 258"),
        (IDS | {"ba": 3}, "encoder.json with vocab.bpe: two tokens have the same id"),
        (IDS | {"ab": 3}, "encoder.json with vocab.bpe: two tokens have the same id"),
        (
            without("Ġ") | {"<|pad|>": IDS["Ġ"]},
            "encoder.json with vocab.bpe: byte 0x20 ('Ġ') has no token",
        ),
        (
            without("<|endoftext|>") | {"<end of text>": 258},
            "encoder.json with vocab.bpe: token '<end of text>' is not spelt in the alphabet",
        ),
        (
            without("ab") | {"<|pad|>": 256},
            "encoder.json with vocab.bpe: merge 'a' 'b': there is no token 'ab'",
        ),
        (
            without("<|endoftext|>") | {"bc": 258},
            "vocab.bpe: no merge makes 'bc' of encoder.json: incomplete",
        ),
    ],
)
def test_a_damaged_encoder_is_refused(tmp_path, ids, message):
    refused(beside(tmp_path, ids=ids), message)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("", "vocab.bpe: the first line is not `#version: …`"),
        ("a b\nab c\n", "vocab.bpe: the first line is not `#version: …`"),
        (MERGES[:-2], "vocab.bpe: line 3 is not two tokens: 'ab '"),
        ("#version: 0.2\na b\n", "vocab.bpe: no merge makes 'abc' of encoder.json: incomplete"),
        (MERGES + "\nb c\n", "vocab.bpe: line 4 is not two tokens: ''"),
        (MERGES + "a\n", "vocab.bpe: line 4 is not two tokens: 'a'"),
        (MERGES + "a  b\n", "vocab.bpe: line 4 is not two tokens: 'a  b'"),
        (MERGES + "a b c\n", "vocab.bpe: line 4 is not two tokens: 'a b c'"),
        (MERGES + "b c\n", "encoder.json with vocab.bpe: merge 'b' 'c': there is no token 'bc'"),
        (MERGES + "a b\n", "encoder.json with vocab.bpe: merge 'a' 'b' occurs twice"),
        (MERGES.replace("\n", "\r"), "vocab.bpe: no merge makes 'ab', 'abc' of encoder.json"),
        (b"#version\n\xff b\n", "vocab.bpe: not UTF-8: "),
    ],
)
def test_damaged_merges_are_refused(tmp_path, merges, message):
    refused(beside(tmp_path, merges=merges), message)


def refused(checkpoint: Checkpoint, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    text = str(caught.value)
    assert message in text
    assert str(checkpoint.path) in text
    assert text.isprintable()


@pytest.mark.parametrize(
    ("format", "present", "message"),
    [
        ("openai", (), "has no vocabulary: no encoder.json and no vocab.bpe"),
        ("openai", ("encoder",), "has no vocabulary: no vocab.bpe"),
        ("openai", ("merges",), "has no vocabulary: no encoder.json"),
        ("huggingface", (), "no vocabulary: no vocab.json and no merges.txt and no tokenizer.json"),
    ],
)
def test_a_checkpoint_without_vocabulary_is_refused_by_name(tmp_path, format, present, message):
    files = {name: tmp_path / name for name in present}
    refused(Checkpoint(tmp_path, format, CONFIG, {}, (), **files), message)


@pytest.mark.parametrize("format", ["openai", "huggingface"])
def test_the_shipped_vocabulary_is_encoded_as_by_tokenizers(format):
    from tokenizers import ByteLevelBPETokenizer

    checkpoint = open_checkpoint(default_checkpoint(format))
    bpe = load(checkpoint)
    others = ByteLevelBPETokenizer(str(checkpoint.encoder), str(checkpoint.merges))
    text = (
        "And God said, Let there be light: and there was light.\n\n  In the 1st year, it's "
        "\tNebuchadnezzar's naïve 😀 中文 café?!  "
    )
    ids = bpe.encode(text)
    assert ids == others.encode(text).ids == encode(checkpoint, text)
    assert bpe.decode(ids) == text
    assert len(ids) < len(text.encode()) / 2  # it was learned from such text
