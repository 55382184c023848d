"""What the default checkpoint can do, measured with the float64 oracle and nothing else.

A model of words that knows no more than one word back is the bar for prediction: it is the best
that can be had without attention. Copying has no bar but chance, ln(n_vocab): nothing in the
first half of a random sequence helps with it, and everything in the second is a repetition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import default_text as text
import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.reference import Config, logits, parameter_count
from gpt_verify.reference.bpe import BPE
from gpt_verify.reference.loss import token_losses_nats

Ids = NDArray[np.int64]
Losses = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.floating]]

#: The length of the random segment, how many of them are tried, and the seed that draws them.
SEGMENT, SEGMENTS, SEGMENT_SEED = 64, 16, 0
#: Tried on a tenth of the training text that is set aside for it.
DISCOUNTS = (0.5, 0.6, 0.7, 0.8, 0.9)
ADDED_COUNTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Bars:
    """Losses of word-counting models on the held-out text, in nats a token."""

    unigram: float
    bigram_add_k: float
    added_count: float
    bigram_kneser_ney: float
    discount: float


def pair_counts(ids: Ids, n_vocab: int) -> NDArray[np.float64]:
    """How often each token followed each: [previous, next]."""
    counts = np.bincount(ids[:-1] * n_vocab + ids[1:], minlength=n_vocab * n_vocab)
    return counts.reshape(n_vocab, n_vocab).astype(np.float64)


def unigram(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add-one estimate from counts [V]; a token that never occurred keeps a little."""
    return (counts + 1.0) / (counts.sum() + len(counts))


def add_k(counts: NDArray[np.float64], ids: Ids, k: float) -> Losses:
    """Loss of each token but the first under the bigram that adds k to each count (Lidstone)."""
    totals = counts.sum(axis=1)
    p = (counts[ids[:-1], ids[1:]] + k) / (totals[ids[:-1]] + k * len(counts))
    return -np.log(p)


def kneser_ney(counts: NDArray[np.float64], ids: Ids, discount: float) -> Losses:
    """Loss of each token but the first under the interpolated Kneser-Ney bigram.

    What the discount takes from the pairs that were seen goes to tokens by how many different
    tokens they were seen to follow (Chen and Goodman 1998, section 3).
    """
    seen = counts > 0
    continuation = unigram(seen.sum(axis=0).astype(np.float64))
    totals = counts.sum(axis=1)
    back_off = np.where(totals > 0, discount * seen.sum(axis=1) / np.maximum(totals, 1.0), 1.0)
    before, after = ids[:-1], ids[1:]
    direct = np.maximum(counts[before, after] - discount, 0.0) / np.maximum(totals[before], 1.0)
    return -np.log(direct + back_off[before] * continuation[after])


def bars(train: Ids, held_out: Ids, n_vocab: int) -> Bars:
    """The bars, their constants chosen on training text alone: the last tenth of it."""
    cut = len(train) * 9 // 10
    part = pair_counts(train[:cut], n_vocab)
    k = min(ADDED_COUNTS, key=lambda k: add_k(part, train[cut:], k).mean())
    discount = min(DISCOUNTS, key=lambda d: kneser_ney(part, train[cut:], d).mean())
    counts = pair_counts(train, n_vocab)
    single = unigram(np.bincount(train, minlength=n_vocab).astype(np.float64))
    return Bars(
        unigram=float(-np.log(single[held_out[1:]]).mean()),
        bigram_add_k=float(add_k(counts, held_out, k).mean()),
        added_count=k,
        bigram_kneser_ney=float(kneser_ney(counts, held_out, discount).mean()),
        discount=discount,
    )


def text_loss(weights: Weights, config: Config, ids: Ids) -> float:
    """Mean loss over all of ``ids`` but the first token.

    Windows of n_ctx overlap by a quarter, and each token is scored where it has the longer past,
    so that hardly any is judged without a context. The last window is shifted back to end with ids.
    """
    stride = config.n_ctx - config.n_ctx // 4
    losses: list[NDArray[np.floating]] = []
    scored = 1  # tokens before this one are done
    start = 0
    while scored < len(ids):
        start = min(start, max(0, len(ids) - config.n_ctx))
        window = ids[start : start + config.n_ctx]
        found = token_losses_nats(logits(weights, config, window), window)
        losses.append(found[scored - start - 1 :])
        scored = start + len(window)
        start += stride
    return float(np.concatenate(losses).mean())


def copying(weights: Weights, config: Config) -> tuple[float, float]:
    """Mean loss on (first, second) half of random tokens that come twice.

    The first token of the second half is left out: nothing says that the repetition begins.
    """
    rng = np.random.default_rng(SEGMENT_SEED)
    losses = []
    for _ in range(SEGMENTS):
        tokens = np.tile(rng.integers(config.n_vocab, size=SEGMENT), 2)
        losses.append(token_losses_nats(logits(weights, config, tokens), tokens))
    mean = np.mean(losses, axis=0)
    return float(mean[: SEGMENT - 1].mean()), float(mean[SEGMENT:].mean())


#: A name that is not in the text, in prose. Only what follows the name's first token is scored.
NAME = " Zorbukel"
PROSE = (
    "And it came to pass in those days, that there was a man of the land of Moab, and his name was"
    "{name}; and he feared the LORD. And all the people went out to meet him, and the king said,"
    " Who is this? And they said unto him, It is{name}"
)


def rare_name(weights: Weights, config: Config, bpe: BPE) -> list[tuple[float, float]]:
    """(first time, second time) loss of each token of a made-up name, in a sentence of prose."""
    head, middle, _end = PROSE.split("{name}")
    name = np.array(bpe.encode(NAME))
    before = np.array(bpe.encode(head))
    tokens = np.concatenate([before, name, np.array(bpe.encode(middle)), name])
    losses = token_losses_nats(logits(weights, config, tokens), tokens)
    first = losses[len(before) - 1 :][: len(name)]
    return [(float(a), float(b)) for a, b in zip(first, losses[-len(name) :], strict=True)]


def evaluate(path: Path) -> None:
    """Print every number of ``docs/default-checkpoint.md``."""
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    if checkpoint.encoder is None or checkpoint.merges is None:
        raise SystemExit(f"{path}: no encoder.json or no vocab.bpe")
    bpe = text.read_bpe(checkpoint.encoder, checkpoint.merges)
    train, held_out = (
        text.encode_documents(bpe, part) for part in text.split_chapters(text.load_chapters())
    )
    weights = {name: np.asarray(value, np.float64) for name, value in checkpoint.tensors.items()}
    print(f"parameters                          {parameter_count(config):,}")
    print(f"training tokens                     {len(train):,}")
    print(f"held-out tokens                     {len(held_out):,}")
    bar = bars(train, held_out, config.n_vocab)
    print(f"held-out: uniform                   {np.log(config.n_vocab):.3f} nats a token")
    print(f"held-out: unigram                   {bar.unigram:.3f}")
    print(f"held-out: bigram, add {bar.added_count:<5g}         {bar.bigram_add_k:.3f}")
    print(f"held-out: bigram, Kneser-Ney {bar.discount:g}    {bar.bigram_kneser_ney:.3f}")
    print(f"held-out: this checkpoint           {text_loss(weights, config, held_out):.3f}")
    first, second = copying(weights, config)
    print(f"{SEGMENT} random tokens, first time       {first:.3f}")
    print(f"{SEGMENT} random tokens, second time      {second:.3f}")
    losses = rare_name(weights, config, bpe)
    for (once, twice), token in zip(losses, bpe.encode(NAME), strict=True):
        spelt = repr(bpe.decode([token]))
        print(f"name{NAME}, token {spelt:<10}    {once:.3f}, second time {twice:.3f}")
