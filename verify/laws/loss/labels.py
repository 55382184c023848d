"""What the loss is asked of: labels that some code takes for none, and padded batches.

Only −100 is ignored. An id that means something to somebody (0, end of text, padding) is a token
like any other where it is a label: who wants it ignored says so by −100.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.laws.subject import Subject
from gpt_verify.port import IGNORED, Port

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

#: Tokens of a sequence whose every prediction is looked at alone.
SHORT = 9


@dataclass(frozen=True)
class Labelled:
    """What a port's loss is asked of.

    Attributes:
        name: for messages.
        tokens: int[B, T].
        labels: int[B, T].
        mask: int[B, T], 1 real, 0 padding; None where there is no padding.
    """

    name: str
    tokens: Tokens
    labels: Tokens
    mask: Tokens | None = None


def meaning(port: Port, n_vocab: int) -> dict[int, str]:
    """Ids that mean something to somebody → their name, for messages."""
    found = {0: "token 0", n_vocab - 1: "the last token, end of text"}
    for name, token in port.special_ids().items():
        if 0 <= token < n_vocab:
            found.setdefault(token, name)
    return found


def with_special_labels(subject: Subject) -> Iterator[Labelled]:
    """A sequence for each such id, in which it is a label at the beginning, in the middle, twice
    in a row and at the end; and one in which nothing else is counted."""
    length = min(subject.config.n_ctx, SHORT)
    special = meaning(subject.port, subject.config.n_vocab)
    for number, (token, name) in enumerate(special.items()):
        tokens = subject.tokens(1, length, 36, number)
        places = sorted({1, length // 2, length // 2 + 1, length - 1} & set(range(length)))
        tokens[:, places] = token
        yield Labelled(f"{name} among the labels", tokens, tokens)
        labels = np.where(tokens == token, tokens, IGNORED)
        labels[:, 0] = IGNORED
        yield Labelled(f"{name} the only label", tokens, labels)


def padded_batches(subject: Subject) -> Iterator[Labelled]:
    """Rows of unequal length, padded on the right, on the left, and not at all, with a mask.

    The labels of the padding are ignored. So is that of the first token of a row that has padding
    before it: what is predicted at the last padding is nobody's. Each row ends with end of text,
    and the longest has it in its middle as well: there it is a label, although the padding on the
    right is filled with it.
    """
    width, end = min(subject.config.n_ctx, SHORT), subject.config.n_vocab - 1
    lengths = np.array((width, width // 2 + 1, 2))
    places = np.arange(width)
    for number, (side, filling) in enumerate((("right", end), ("left", 0), ("left", end))):
        tokens = subject.tokens(len(lengths), width, 37, number)
        if side == "right":
            mask = places < lengths[:, None]
            tokens[np.arange(len(lengths)), lengths - 1] = end
        else:
            mask = places >= width - lengths[:, None]
            tokens[:, -1] = end
        tokens[0, width // 2] = end
        tokens = np.where(mask, tokens, filling)
        labels = np.where(mask, tokens, IGNORED)
        if side == "left":
            labels[np.arange(len(lengths)), width - lengths] = IGNORED
        name = f"padded on the {side} with token {filling}"
        yield Labelled(name, tokens, labels, mask.astype(np.int64))
    tokens = subject.tokens(2, width, 37, 3)
    yield Labelled("a mask of ones", tokens, tokens, np.ones_like(tokens))
