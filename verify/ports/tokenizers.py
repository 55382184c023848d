"""Tokenizers that other people wrote, from the files of a port: transformers' and tiktoken's."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.vocabulary import files, load
from gpt_verify.port import Tokenizer
from gpt_verify.reference.bpe import alphabet

#: Special tokens in a text are text, and no text is too long.
_OPTIONS: dict[str, Any] = {"split_special_tokens": True, "model_max_length": 10**9}


def tokenizers(checkpoint: Checkpoint, source: str | None = None) -> dict[str, Tokenizer]:
    """Every tokenizer that can be built, by name; empty where there are no files to build from.

    ``transformers-fast``; ``transformers-slow``, which transformers 4 has; ``tiktoken``, where it
    is installed and its way of merging is that of the vocabulary.

    Args:
        checkpoint: its vocabulary is used where there is no source.
        source: a directory or hub id with a tokenizer of its own.

    Raises:
        CheckpointError: the checkpoint's vocabulary is damaged.
    """
    if source is not None:
        return dict(_of_source(source))
    with files(checkpoint) as both:
        return {} if both is None else dict(_of_files(checkpoint, *both))


def _of_files(checkpoint: Checkpoint, encoder: Path, merges: Path) -> Iterator[tuple[str, Any]]:
    def build(cls: Any) -> Any:
        # The names of the files in transformers 4; since 5 what they hold may be given as well.
        old = "vocab_file" in inspect.signature(cls.__init__).parameters
        names = ("vocab_file", "merges_file") if old else ("vocab", "merges")
        files = dict(zip(names, (str(encoder), str(merges)), strict=True))
        return cls(**files, **_OPTIONS)

    yield from _of_transformers(build)
    bpe = load(checkpoint)
    yield from _of_tiktoken(bpe.encoder, bpe.merges)


def _of_source(source: str) -> Iterator[tuple[str, Any]]:
    def build(cls: Any) -> Any:
        return cls.from_pretrained(source, **_OPTIONS)

    try:
        made = dict(_of_transformers(build))
    except (OSError, ImportError):  # transformers 4 looks for another format where there is none
        return
    fast: Any = made.get("transformers-fast")
    # Of what is not there, transformers 5 makes a tokenizer of one token.
    if fast is None or not (model := _model(fast.tokenizer))["merges"]:
        return
    yield from made.items()
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    yield from _of_tiktoken(model["vocab"], pairs)


def _model(tokenizer: Any) -> dict[str, Any]:
    """Vocabulary and merges of a fast tokenizer."""
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return {"vocab": model.get("vocab", {}), "merges": model.get("merges", [])}


@dataclass(frozen=True)
class _Transformers:
    """``PreTrainedTokenizerFast`` or ``PreTrainedTokenizer``, with nothing added or cleaned up."""

    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        # The slow one would set its special tokens apart.
        options = {} if self.tokenizer.is_fast else {"spaces_between_special_tokens": False}
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False, **options
            )
        )


def _of_transformers(build: Callable[[Any], Any]) -> Iterator[tuple[str, Tokenizer]]:
    import transformers

    from gpt_verify.ports.quiet import quiet

    # In transformers 5 the two names stand for one class.
    for cls in dict.fromkeys((transformers.GPT2TokenizerFast, transformers.GPT2Tokenizer)):
        with quiet(transformers):
            made = _Transformers(build(cls))
        yield f"transformers-{'fast' if made.tokenizer.is_fast else 'slow'}", made


@dataclass(frozen=True)
class _TikToken:
    """An ``Encoding`` of tiktoken. It takes special tokens for text where it is asked to."""

    encoding: Any

    def encode(self, text: str) -> list[int]:
        return list(self.encoding.encode_ordinary(text))

    def decode(self, ids: list[int]) -> str:
        return str(self.encoding.decode(ids))


def _of_tiktoken(
    encoder: Mapping[str, int], merges: Sequence[tuple[str, ...]]
) -> Iterator[tuple[str, Tokenizer]]:
    """tiktoken with these ranks and its own pattern for GPT-2; it fetches nothing.

    An id is a rank to it: what has the smaller one is merged first. Of a vocabulary whose ids are
    in another order than its merges it is no tokenizer.
    """
    if importlib.util.find_spec("tiktoken") is None:
        return
    made = ["".join(pair) for pair in merges]
    if any(encoder[one] >= encoder[next_] for one, next_ in pairwise(made)):
        return
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    byte_of = {symbol: byte for byte, symbol in alphabet().items()}
    ordinary = {*byte_of, *made}
    ranks = {bytes(byte_of[s] for s in token): encoder[token] for token in ordinary}
    special = {token: n for token, n in encoder.items() if token not in ordinary}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )
    yield "tiktoken", _TikToken(encoding)
