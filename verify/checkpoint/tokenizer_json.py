"""``tokenizer.json`` of the library tokenizers, where it is GPT-2's byte-level BPE and no more.

transformers 5 saves this file alone. It can say far more than two files of OpenAI's can, and what
would encode a text otherwise is refused by name. Source: huggingface/tokenizers
``tokenizers/src/models/bpe/serialization.rs`` and ``pre_tokenizers/byte_level.rs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt_verify.checkpoint.files import read_json, refusal
from gpt_verify.checkpoint.keys import stated

#: Key of the model → the values with which it encodes as OpenAI's does; an absent key is null.
_MODEL: dict[str, tuple[object, ...]] = {
    "type": (None, "BPE"),
    "dropout": (None, 0.0, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
_BYTES: dict[str, tuple[object, ...]] = {
    "type": ("ByteLevel",),
    "add_prefix_space": (False,),
    "use_regex": (None, True),
}


@dataclass(frozen=True)
class StoredTokenizer:
    """The tokenizer that the file describes.

    Attributes:
        ids: token, spelt in the alphabet of bytes → id.
        merges: pairs to be joined, the first to be applied first.
        special: tokens that are said to be special.
        added: token as text → id, of those that are not among ``ids``.
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    special: set[str]
    added: dict[str, int]


def read_tokenizer(path: Path) -> StoredTokenizer:
    """Vocabulary and merges.

    Raises:
        CheckpointError: not JSON, or not a byte-level BPE as GPT-2's.
    """
    said = read_json(path)
    model = said.get("model")
    if not isinstance(model, dict):
        raise refusal(path, "has no model")
    _need(path, "model", model, _MODEL)
    if said.get("normalizer") is not None:
        raise refusal(path, f"{stated('normalizer', said['normalizer'])}: GPT-2 has none")
    cut = said.get("pre_tokenizer")
    _need(path, "pre_tokenizer", cut if isinstance(cut, dict) else {}, _BYTES)
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise refusal(path, "its model has no vocab, or no merges")
    ids = read_ids(path, vocab)
    listed = said.get("added_tokens") or []
    if not isinstance(listed, list):
        raise refusal(path, "added_tokens is no list")
    tokens = [token for token in listed if isinstance(token, dict)]
    texts = {str(token.get("content")): token.get("id") for token in tokens}
    return StoredTokenizer(
        ids,
        [_pair(path, number, line) for number, line in enumerate(merges)],
        {str(token.get("content")) for token in tokens if token.get("special") is True},
        read_ids(path, {text: token for text, token in texts.items() if text not in ids}),
    )


def read_ids(path: Path, ids: Mapping[str, object]) -> dict[str, int]:
    """Token → id; CheckpointError where one is no integer."""
    found = {}
    for token, value in ids.items():
        if type(value) is not int:
            raise refusal(path, f"the id of {token!r} is {value!r}, not an integer")
        found[token] = value
    return found


def _need(
    path: Path, what: str, said: Mapping[str, object], allowed: dict[str, tuple[object, ...]]
) -> None:
    for key, right in allowed.items():
        value = said.get(key)
        if not any(type(value) is type(other) and value == other for other in right):
            raise refusal(path, f"{what}: {stated(key, value)}: no byte-level BPE as GPT-2's")


def _pair(path: Path, number: int, line: object) -> tuple[str, str]:
    """``"a b"``, or since 2024 ``["a", "b"]``."""
    both = line.split(" ") if isinstance(line, str) else line
    if isinstance(both, list) and len(both) == 2 and all(isinstance(x, str) and x for x in both):
        return both[0], both[1]
    raise refusal(path, f"merges[{number}] is not two tokens: {line!r}")
