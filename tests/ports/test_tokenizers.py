"""The tokenizers of the ports of transformers: which there are, and that they are the reference."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import CONFIG
from models import checkpoint as in_memory

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.checkpoint.vocabulary import load
from gpt_verify.port import TOKENIZERS, Tokenizer
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.ports.tokenizers import _of_tiktoken, tokenizers
from gpt_verify.reference.bpe import BPE

DIRECTORY = default_checkpoint("huggingface")
SOURCE = open_checkpoint(default_checkpoint())
TEXTS = [
    "",
    " ",
    "It's  a test<|endoftext|>, isn't it ?\n\n\t'Twas\r\n 12345 naïve Ω 中文 😀 x",
    " ,.!? n't 're  'S\u00a0\u2003\u0301é\x00\x7f",
    "a" * 3000,
]
SHIPPED = [default_checkpoint(), DIRECTORY]


def same_as(bpe: BPE, tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == bpe.encode(text)
        assert all(type(token) is int for token in ids)
        assert tokenizer.decode(ids) == text
    end = bpe.encoder["<|endoftext|>"]
    for ids in ([end], [1, end, end, 2], *([token] for token in range(300)), []):
        assert tokenizer.decode(ids) == bpe.decode(ids)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_from_the_checkpoint(path: Path) -> None:
    source = open_checkpoint(path)
    found = tokenizers(source)
    assert {"transformers-fast", "tiktoken"} <= found.keys()
    assert found.keys() <= {"transformers-fast", "transformers-slow", "tiktoken"}
    for tokenizer in found.values():
        same_as(load(source), tokenizer)


def test_from_a_source() -> None:
    found = tokenizers(in_memory(), str(DIRECTORY))
    assert {"transformers-fast", "tiktoken"} <= found.keys()
    for tokenizer in found.values():
        same_as(load(SOURCE), tokenizer)


def test_a_source_with_another_vocabulary(tmp_path: Path) -> None:
    """The source's own files are read, not the checkpoint's."""
    for name in ("config.json", "vocab.json"):
        shutil.copy(DIRECTORY / name, tmp_path)
    lines = (DIRECTORY / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join(lines[:300]), encoding="utf-8")
    found = tokenizers(SOURCE, str(tmp_path))
    for tokenizer in found.values():
        assert tokenizer.encode("the theory of everything") != load(SOURCE).encode(
            "the theory of everything"
        )


@pytest.mark.parametrize("files", [[], ["config.json"]])
def test_a_source_without_a_tokenizer(tmp_path: Path, files: list[str]) -> None:
    """transformers 5 makes one of a single token out of nothing, and says nothing."""
    for name in files:
        shutil.copy(DIRECTORY / name, tmp_path)
    assert tokenizers(SOURCE, str(tmp_path)) == {}


def test_a_checkpoint_without_a_vocabulary() -> None:
    assert tokenizers(in_memory()) == {}


def test_the_port_has_them_where_there_are_files(tmp_path: Path) -> None:
    made = huggingface(SOURCE, "sdpa")
    assert made.offers()[TOKENIZERS]().keys() == tokenizers(SOURCE).keys()
    assert made.offers()[TOKENIZERS]() is made.offers()[TOKENIZERS]()
    assert TOKENIZERS not in huggingface(in_memory(), "sdpa").offers()


def test_the_port_of_a_source_has_the_source_s() -> None:
    made = huggingface(dataclasses.replace(SOURCE, encoder=None), "sdpa", source=str(DIRECTORY))
    same_as(load(SOURCE), made.offers()[TOKENIZERS]()["transformers-fast"])


def test_ids_in_another_order_than_the_merges_are_not_tiktoken_s() -> None:
    bpe = load(SOURCE)
    assert dict(_of_tiktoken(bpe.encoder, bpe.merges)).keys() == {"tiktoken"}
    last, before = ("".join(pair) for pair in bpe.merges[-2:])
    exchanged = {**bpe.encoder, last: bpe.encoder[before], before: bpe.encoder[last]}
    assert dict(_of_tiktoken(exchanged, bpe.merges)) == {}


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    source: Checkpoint = dataclasses.replace(SOURCE, config=CONFIG)
    with pytest.raises(Exception, match="outside 0 … 100"):  # the vocabulary is not this model's
        tokenizers(source)
    assert "tiktoken" in tokenizers(SOURCE)
