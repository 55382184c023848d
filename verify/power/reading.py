"""Whether an injected tokenizer does anything else than a correct one on a checkpoint's
vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.vocabulary import load
from gpt_verify.laws.tokenizer.injection import Altered, right
from gpt_verify.laws.tokenizer.texts import id_lists, texts
from gpt_verify.port import TOKENIZERS

if TYPE_CHECKING:
    from gpt_verify.port import Port

Given = TypeVar("Given")
Made = TypeVar("Made")


def reads_otherwise(port: Port, checkpoint: Checkpoint, seed: int) -> bool:
    """Some text or list of ids comes out otherwise than from the same library without a mistake."""
    tokenizers = port.offers()[TOKENIZERS]
    bpe = load(checkpoint)
    given = texts(bpe, np.random.default_rng([seed, 41]))
    lists = id_lists(
        bpe,
        {name: bpe.encode(text) for name, text in given.items()},
        np.random.default_rng([seed, 42]),
    )
    correct = Altered(right(bpe))
    return any(
        _made(injected.encode, text) != correct.encode(text)
        for injected in tokenizers().values()
        for text in given.values()
    ) or any(
        _made(injected.decode, ids) != correct.decode(ids)
        for injected in tokenizers().values()
        for ids in lists.values()
    )


def _made(call: Callable[[Given], Made], given: Given) -> Made | None:
    try:
        return call(given)
    except ValueError:  # it refuses
        return None
