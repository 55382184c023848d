"""The vocabulary of a checkpoint: the shipped one works, and every kind of damage is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.checkpoint.vocabulary import encode, files, load, pieces
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


# --- vocabularies as people have them ---------------------------------------------------------


def wider(checkpoint: Checkpoint, rows: int) -> Checkpoint:
    return replace(checkpoint, config=replace(CONFIG, n_vocab=rows))


@pytest.mark.parametrize("rows", [259, 260, 320])
def test_fewer_tokens_than_rows(tmp_path, rows):
    """Rows were added, or pad the table to a round number."""
    source = wider(beside(tmp_path), rows)
    assert encode(source, "abcab b") == [IDS[s] for s in ("abc", "ab", "Ġ", "b")]


def test_added_tokens_are_shown_and_never_encoded_to(tmp_path):
    source = wider(beside(tmp_path), 261)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|ü pad|>": 259, "beyond": 400}))
    source = replace(source, added=tmp_path / "added_tokens.json")
    assert 259 not in encode(source, "<|ü pad|>")
    known = pieces(source)
    assert known[259] == "<|ü pad|>".encode()
    assert known[IDS["abc"]] == b"abc"
    assert 260 not in known


def test_a_special_token_without_a_row_is_left_out(tmp_path):
    """A tokenizer had it added, and the model was not made larger."""
    bpe = load(beside(tmp_path, ids=IDS | {"[PAD]": 259}))
    assert bpe.encoder == IDS


@pytest.mark.parametrize(
    "merges",
    [MERGES[:-1], MERGES + "\n\n", MERGES.replace("\n", "\r\n"), MERGES.replace("\n", "\r\n")[:-2]],
)
def test_merges_of_other_editors(tmp_path, merges):
    source = beside(tmp_path, merges=merges)
    assert load(source).merges == [("a", "b"), ("ab", "c")]
    with files(source) as both:
        assert both is not None
        encoder, vocab = both
        assert vocab.read_text(encoding="utf-8") == MERGES
        assert json.loads(encoder.read_text(encoding="utf-8")) == IDS
        assert vocab.parent != tmp_path
    assert not vocab.exists()


def test_files_that_everybody_reads_are_handed_on_as_they_are(tmp_path):
    source = beside(tmp_path)
    with files(source) as both:
        assert both == (source.encoder, source.merges)
    with files(replace(source, merges=None)) as both:
        assert both is None


def tokenizer_json(directory: Path, **changes: Any) -> Checkpoint:
    """What the library tokenizers writes of the same vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ordinary = {token: n for token, n in IDS.items() if n < 258}
    made = Tokenizer(models.BPE(ordinary, [("a", "b"), ("ab", "c")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    said = json.loads(made.to_str())
    for path, value in changes.items():
        *keys, last = path.split("__")
        inner = said
        for key in keys:
            inner = inner[key]
        inner[last] = value
    (directory / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    return Checkpoint(directory, "huggingface", CONFIG, {}, tokenizer=directory / "tokenizer.json")


@pytest.mark.parametrize("merges", [["a b", "ab c"], [["a", "b"], ["ab", "c"]]])
def test_tokenizer_json_alone(tmp_path, merges):
    """transformers 5 saves nothing else; merges are words in older files, and pairs in newer."""
    source = tokenizer_json(tmp_path, model__merges=merges)
    assert encode(source, "abcab b") == [IDS[s] for s in ("abc", "ab", "Ġ", "b")]
    assert pieces(source)[258] == b"<|endoftext|>"
    with files(source) as both:
        assert both is not None
        assert both[1].read_text(encoding="utf-8") == MERGES


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model__type", "Unigram", 'model: type = "Unigram": no byte-level BPE as GPT-2\'s'),
        ("model__dropout", 0.1, "model: dropout = 0.1: no byte-level BPE"),
        ("model__byte_fallback", True, "model: byte_fallback = true: no byte-level BPE"),
        ("normalizer", {"type": "Lowercase"}, 'normalizer = {"type": "Lowercase"}: GPT-2 has none'),
        ("pre_tokenizer__add_prefix_space", True, "pre_tokenizer: add_prefix_space = true: no"),
        ("pre_tokenizer", {"type": "Whitespace"}, 'pre_tokenizer: type = "Whitespace": no byte-'),
        ("model__vocab", [], "its model has no vocab, or no merges"),
        ("model__merges", ["a b", "ab"], "merges[1] is not two tokens: 'ab'"),
        ("model__merges", ["a b"], "no merge makes 'abc' of tokenizer.json: incomplete"),
        ("model", None, "has no model"),
        ("added_tokens", {"content": "<|pad|>"}, "added_tokens is no list"),
    ],
)
def test_a_tokenizer_json_that_would_encode_otherwise(tmp_path, path, value, message):
    refused(tokenizer_json(tmp_path, **{path: value}), f"tokenizer.json: {message}")


def test_gpts_tokenizer_is_said_to_be_another(tmp_path):
    source = replace(beside(tmp_path), config=replace(CONFIG, architecture="openai-gpt"))
    refused(source, "the tokenizer of openai-gpt (words in lower case, no bytes) is not modelled; ")


def test_transformers_tokenizers_of_tokenizer_json_are_judged(tmp_path):
    from gpt_verify.ports.tokenizers import tokenizers

    made = tokenizers(tokenizer_json(tmp_path))
    assert "transformers-fast" in made
    bpe = load(tokenizer_json(tmp_path))
    for tokenizer in made.values():
        assert tokenizer.encode("abcab b <|endoftext|>") == bpe.encode("abcab b <|endoftext|>")
