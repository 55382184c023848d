"""The text of the default checkpoint, and a byte-level BPE learned from it.

The files that come out are in OpenAI's format (``encoder.json``, ``vocab.bpe``). Everything here is
deterministic: the same text gives the same ids, in the training, in the evaluation and in the test.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.bpe import BPE, alphabet, split

#: ``bible -f "Gen1:1-Rev22:21"``: see ``scripts/data/README.md``.
TEXT_PATH = Path(__file__).resolve().parent / "data" / "kjv.txt.xz"
TEXT_SHA256 = "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d"
#: The last part of the text is never trained on.
HELD_OUT_FRACTION = 0.05
END_OF_TEXT = "<|endoftext|>"

VERSE = re.compile(r"([0-9A-Za-z]+?)([0-9]+):([0-9]+) (.*)")

Merge = tuple[str, str]


def load_chapters() -> list[str]:
    """Each chapter as one document, a verse a line, without the verse numbers.

    Raises:
        ValueError: the file is not what this code was written for.
    """
    data = lzma.decompress(TEXT_PATH.read_bytes())
    if (found := hashlib.sha256(data).hexdigest()) != TEXT_SHA256:
        raise ValueError(f"{TEXT_PATH}: sha256 {found}, should be {TEXT_SHA256}")
    chapters: dict[tuple[str, str], list[str]] = {}
    for line in data.decode("ascii").splitlines():
        match = VERSE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a verse: {line!r}")
        book, chapter, _verse, words = match.groups()
        chapters.setdefault((book, chapter), []).append(words + "\n")
    if len(chapters) != 1189:
        raise ValueError(f"{len(chapters)} chapters, should be 1189")
    return ["".join(verses) for verses in chapters.values()]


def split_chapters(chapters: list[str]) -> tuple[list[str], list[str]]:
    """(training, held out): cut at the first chapter that begins after 95 % of the characters."""
    budget = (1 - HELD_OUT_FRACTION) * sum(map(len, chapters))
    for index, chapter in enumerate(chapters):
        if budget < 0:
            return chapters[:index], chapters[index:]
        budget -= len(chapter)
    raise ValueError("nothing is left to hold out")


def byte_symbols() -> list[str]:
    """The 256 symbols in the order of their ids: the visible characters of Latin-1, then the rest.

    gpt-2 ``src/encoder.py:9`` numbers them so, which is the order of the symbols themselves.
    """
    return sorted(alphabet().values())


def join(word: list[str], merge: Merge) -> list[str]:
    """Replace each occurrence of the pair, from the left, by the joined symbol."""
    out: list[str] = []
    i = 0
    while i < len(word):
        if tuple(word[i : i + 2]) == merge:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def learn_merges(documents: Iterable[str], n_merges: int) -> list[Merge]:
    """Sennrich et al. 2016, algorithm 1: join the most frequent pair, again and again.

    Counts of pairs are kept up to date instead of being recounted, and a tie goes to the pair that
    sorts first, so that the result depends on nothing but the text.
    """
    counts = Counter(piece for document in documents for piece in split(document))
    words = [[alphabet()[byte] for byte in piece.encode()] for piece in counts]
    weight = list(counts.values())
    pairs: Counter[Merge] = Counter()
    where: defaultdict[Merge, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weight[index]
            where[pair].add(index)
    merges: list[Merge] = []
    while len(merges) < n_merges:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for index in where.pop(best):
            for pair in pairwise(words[index]):
                pairs[pair] -= weight[index]
            words[index] = join(words[index], best)
            for pair in pairwise(words[index]):
                pairs[pair] += weight[index]
                where[pair].add(index)
        del pairs[best]
    return merges


def build_encoder(merges: list[Merge]) -> dict[str, int]:
    """Symbol → id: the bytes, the merges in order, and the end of text last."""
    symbols = [*byte_symbols(), *(a + b for a, b in merges), END_OF_TEXT]
    encoder = {symbol: token for token, symbol in enumerate(symbols)}
    if len(encoder) != len(symbols):
        raise ValueError("two merges give the same symbol")
    return encoder


def write_bpe(directory: Path, merges: list[Merge]) -> tuple[Path, Path]:
    """Write ``encoder.json`` and ``vocab.bpe`` as OpenAI's releases have them."""
    directory.mkdir(parents=True, exist_ok=True)
    encoder_path, merges_path = directory / "encoder.json", directory / "vocab.bpe"
    encoder_path.write_text(json.dumps(build_encoder(merges)), "ascii")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    merges_path.write_text("\n".join(lines) + "\n", "utf-8")
    return encoder_path, merges_path


def read_bpe(encoder_path: Path, merges_path: Path) -> BPE:
    """Read the two files."""
    lines = merges_path.read_text("utf-8").splitlines()[1:]
    merges = [(a, b) for a, b in (line.split() for line in lines)]
    return BPE(json.loads(encoder_path.read_text("ascii")), merges)


def encode_documents(bpe: BPE, documents: Iterable[str]) -> NDArray[np.int64]:
    """Ids of documents in a row, an end of text before each."""
    end = bpe.encoder[END_OF_TEXT]
    return np.array([i for text in documents for i in (end, *bpe.encode(text))], np.int64)
