"""The tokenizer that lies beside the weights, checked against them before it is used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gpt_verify.checkpoint.files import LARGEST_JSON, listing, read_bytes, read_json, refusal
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.errors import UsageError
from gpt_verify.reference.bpe import BPE, alphabet

#: Tokens that no merge makes, because they never come from text: ``<|endoftext|>``, ``[PAD]``.
SPECIAL = re.compile(r"<.+>|\[.+\]")


def load(checkpoint: Checkpoint) -> BPE:
    """The byte-level BPE of a checkpoint of either format.

    Raises:
        CheckpointError: there is none; a file is damaged; the ids are not 0 … n_vocab - 1; or the
            two files do not belong together.
    """
    encoder, merges = checkpoint.encoder, checkpoint.merges
    if encoder is None or merges is None:
        both = ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")
        names = both[checkpoint.format == "huggingface"]
        missing = [name for name, file in zip(names, (encoder, merges), strict=True) if not file]
        raise refusal(checkpoint.path, f"has no vocabulary: no {' and no '.join(missing)}")
    ids = _read_encoder(encoder, checkpoint.config.n_vocab)
    pairs = _read_merges(merges)
    try:
        bpe = BPE(ids, pairs)
    except ValueError as error:
        files = f"{encoder.name} with {merges.name}"
        raise refusal(checkpoint.path, f"{files}: {error}") from None
    made = {*alphabet().values(), *(left + right for left, right in pairs)}
    if orphans := [token for token in ids if token not in made and not SPECIAL.fullmatch(token)]:
        raise refusal(merges, f"no merge makes {_quoted(orphans)} of {encoder.name}: incomplete")
    return bpe


def encode(checkpoint: Checkpoint, text: str) -> list[int]:
    """Ids of a text in the checkpoint's own vocabulary.

    Raises:
        CheckpointError: as `load`.
        UsageError: the text is not Unicode (an argument that was not valid UTF-8).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text is not valid Unicode at character {error.start}") from None
    return load(checkpoint).encode(text)


def _read_encoder(path: Path, n_vocab: int) -> dict[str, int]:
    ids: dict[str, int] = {}
    for token, value in read_json(path, floats=False).items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise refusal(path, f"the id of {token!r} is {value!r}, not an integer")
        if not 0 <= value < n_vocab:
            raise refusal(path, f"the id of {token!r} is {value}, outside 0 … {n_vocab - 1}")
        ids[token] = value
    if len(ids) != n_vocab:
        raise refusal(path, f"{len(ids)} tokens, but the model has {n_vocab}")
    return ids


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_bytes(path, LARGEST_JSON).decode().split("\n")
    except UnicodeDecodeError as error:
        raise refusal(path, f"not UTF-8: {error}") from None
    if not lines[0].startswith("#version"):
        raise refusal(path, "the first line is not `#version: …`")
    if lines.pop():
        raise refusal(path, "the last line is cut off")
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines[1:], 2):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise refusal(path, f"line {number} is not two tokens: {line!r}")
        pairs.append((left, right))
    return pairs


def _quoted(tokens: Iterable[str]) -> str:
    return listing(map(repr, tokens))
