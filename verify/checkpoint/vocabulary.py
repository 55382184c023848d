"""The tokenizer that lies beside the weights, checked against them before it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gpt_verify.checkpoint.files import LARGEST_JSON, read_bytes, read_json, refusal
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.checkpoint.tokenizer_json import read_ids, read_tokenizer
from gpt_verify.errors import UsageError
from gpt_verify.process.scratch import scratch
from gpt_verify.reference.bpe import BPE, alphabet
from gpt_verify.text import listing

#: Tokens that no merge makes, because they never come from text: ``<|endoftext|>``, ``[PAD]``.
SPECIAL = re.compile(r"<.+>|\[.+\]")


def load(checkpoint: Checkpoint) -> BPE:
    """The byte-level BPE of a checkpoint of any format.

    Tokens that no text is encoded to (``added_tokens.json``) are no part of it, and rows of the
    table of tokens may have none, as where it was padded to a round number.

    Raises:
        CheckpointError: there is none; a file is damaged; an id lies outside the table; or the
            files do not belong together.
    """
    n_vocab = checkpoint.config.n_vocab
    _need_vocabulary(checkpoint)
    if checkpoint.tokenizer is not None:
        stored = read_tokenizer(checkpoint.tokenizer)
        encoder = merges = checkpoint.tokenizer
        given, pairs, special = stored.ids, stored.merges, stored.special
    else:
        assert checkpoint.encoder is not None and checkpoint.merges is not None  # it has one
        encoder, merges = checkpoint.encoder, checkpoint.merges
        given, pairs, special = read_ids(encoder, read_json(encoder)), _read_merges(merges), set()
    ids = _within(encoder, given, n_vocab, special)
    try:
        bpe = BPE(ids, pairs)
    except ValueError as error:
        files = encoder.name if encoder == merges else f"{encoder.name} with {merges.name}"
        raise refusal(checkpoint.path, f"{files}: {error}") from None
    made = {*alphabet().values(), *(left + right for left, right in pairs)}
    orphans = [token for token in ids if not (token in made or _special(token, special))]
    if orphans:
        raise refusal(merges, f"no merge makes {_quoted(orphans)} of {encoder.name}: incomplete")
    return bpe


def _need_vocabulary(checkpoint: Checkpoint) -> None:
    if checkpoint.config.architecture != "gpt2":
        raise refusal(
            checkpoint.path,
            f"the tokenizer of {checkpoint.config.architecture} (words in lower case, no bytes) is "
            "not modelled; give ids with --tokens",
        )
    if not checkpoint.has_vocabulary:
        both = {"encoder.json": checkpoint.encoder, "vocab.bpe": checkpoint.merges}
        if checkpoint.format == "huggingface":
            both = {"vocab.json": checkpoint.encoder, "merges.txt": checkpoint.merges}
        missing = [f"no {name}" for name, file in both.items() if file is None]
        missing += ["no tokenizer.json"] * (checkpoint.format == "huggingface")
        raise refusal(checkpoint.path, f"has no vocabulary: {' and '.join(missing)}")


def pieces(checkpoint: Checkpoint) -> dict[int, bytes]:
    """Id → the bytes that it stands for, tokens that were added included; not of every row.

    Raises:
        CheckpointError: as `load`.
    """
    bpe = load(checkpoint)
    added: dict[str, int] = {}
    if checkpoint.tokenizer is not None:
        added = read_tokenizer(checkpoint.tokenizer).added
    if checkpoint.added is not None:
        added |= read_ids(checkpoint.added, read_json(checkpoint.added))
    found = {token: text.encode(errors="replace") for text, token in added.items()}
    return found | {token: bpe.decode_bytes([token]) for token in bpe.decoder}


@contextmanager
def files(checkpoint: Checkpoint) -> Iterator[tuple[Path, Path] | None]:
    """``encoder.json`` and ``vocab.bpe`` in the form that everybody reads, for other people's code.

    The checkpoint's own, where they have that form; else written anew, and gone afterwards. None
    where it has no vocabulary.

    Raises:
        CheckpointError: as `load`.
    """
    if not checkpoint.has_vocabulary:
        yield None
        return
    encoder, merges = checkpoint.encoder, checkpoint.merges
    if encoder is not None and merges is not None:
        text = read_bytes(merges, LARGEST_JSON)
        if re.search(rb"[^\n]\n\Z", text) and b"\r" not in text:
            yield encoder, merges
            return
    bpe = load(checkpoint)
    with scratch() as directory:
        encoder, merges = Path(directory, "encoder.json"), Path(directory, "vocab.bpe")
        encoder.write_text(json.dumps(bpe.encoder), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in bpe.merges), ""]
        merges.write_bytes("\n".join(lines).encode())
        yield encoder, merges


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


def _within(
    path: Path, ids: Mapping[str, int], n_vocab: int, special: Collection[str]
) -> dict[str, int]:
    """The tokens that text may be encoded to: all of them have a row.

    A special token without one, which a tokenizer may have and its model not, is left out.
    """
    found = {}
    for token, value in ids.items():
        if 0 <= value < n_vocab:
            found[token] = value
        elif value < 0 or not _special(token, special):
            raise refusal(path, f"the id of {token!r} is {value}, outside 0 … {n_vocab - 1}")
    return found


def _special(token: str, special: Collection[str]) -> bool:
    return token in special or SPECIAL.fullmatch(token) is not None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_bytes(path, LARGEST_JSON).decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise refusal(path, f"not UTF-8: {error}") from None
    if not lines[0].startswith("#version"):
        raise refusal(path, "the first line is not `#version: …`")
    while lines[-1] == "":
        lines.pop()
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines[1:], 2):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise refusal(path, f"line {number} is not two tokens: {line!r}")
        pairs.append((left, right))
    return pairs


def _quoted(tokens: Iterable[str]) -> str:
    return listing(map(repr, tokens))
