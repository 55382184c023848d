"""Lenses made from logits by hand, for the tests of what is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpt_verify.judging.lens import LensReport, Reading
from gpt_verify.lens.attribution import Attribution, part_names
from gpt_verify.lens.statistics import UNDEFINED, Lens
from gpt_verify.reference.lens import kl_nats, rank
from gpt_verify.reference.loss import log_softmax

#: Texts of tokens, by id; those beyond are numbered.
WORDS = (
    b" the",
    b"of",
    b"\n",
    b"\xe2",
    b" ",
    b"$x_1^2$",
    "日本".encode(),
    b"<b>",
    b" " + b"w" * 40,
)


def sites(layers: int, sub_blocks: bool = True) -> tuple[str, ...]:
    kinds = ("resid_mid", "resid_post") if sub_blocks else ("resid_post",)
    return ("embed", *(f"h.{i}.{kind}" for i in range(layers) for kind in kinds))


def lens(
    layers: int = 3,
    tokens: Sequence[int] = (3, 1, 4, 1, 5, 7, 2),
    *,
    vocabulary: int = 11,
    seed: int = 0,
    noise: float = 0.0,
    sub_blocks: bool = True,
    k: int = 5,
) -> Lens:
    """The lens of random logits that grow more certain with depth.

    Args:
        noise: added to the logits, so that two lenses of one seed are nearly the same.
    """
    names, tokens_T = sites(layers, sub_blocks), np.asarray(tokens)
    rng = np.random.default_rng(seed)
    shape = (2 * layers + 1, len(tokens_T), vocabulary)
    logits = (
        rng.normal(size=shape) * np.linspace(0.5, 4, len(shape and range(shape[0])))[:, None, None]
    )
    if not sub_blocks:
        logits = logits[np.r_[0, 2 : shape[0] : 2]]
    logits = logits + noise * np.random.default_rng(seed + 1).normal(size=logits.shape)
    return of_logits(names, tokens_T, logits, k)


def of_logits(
    names: tuple[str, ...], tokens_T: np.ndarray, logits_NTV: np.ndarray, k: int = 5
) -> Lens:
    """Every statistic by its definition."""
    log_q = np.stack([log_softmax(x) for x in logits_NTV])
    q = np.exp(log_q)
    final, first = log_q[-1], log_q[0]
    top = np.argsort(-logits_NTV, axis=-1, kind="stable")[..., :k]
    next_T = np.append(tokens_T[1:], 0)
    rank_next = np.stack([rank(x, next_T) for x in logits_NTV])
    rank_next[:, -1] = UNDEFINED
    loss = -np.stack([np.take_along_axis(x, next_T[:, None], -1)[:, 0] for x in log_q])
    loss[:, -1] = np.nan
    middle = [np.logaddexp(x, final) - np.log(2) for x in log_q]
    halves = [kl_nats(final, m) / 2 + kl_nats(x, m) / 2 for x, m in zip(log_q, middle, strict=True)]
    return Lens(
        sites=names,
        tokens_T=tokens_T,
        decoder="by hand",
        rank_final_top1=np.stack([rank(x, top[-1, :, 0]) for x in logits_NTV]),
        rank_input=np.stack([rank(x, tokens_T) for x in logits_NTV]),
        rank_next=rank_next,
        kl_final_layer_nats=np.stack([kl_nats(final, x) for x in log_q]),
        kl_input_layer_nats=np.stack([kl_nats(first, x) for x in log_q]),
        kl_layer_final_nats=np.stack([kl_nats(x, final) for x in log_q]),
        js_distance=np.sqrt(np.maximum(halves, 0)),
        total_variation=np.abs(q - q[-1]).sum(-1) / 2,
        entropy_nats=-(q * log_q).sum(-1),
        loss_nats=loss,
        top_ids=top,
        top_probabilities=np.take_along_axis(q, top, -1),
    )


def names(count: int) -> dict[int, str]:
    from gpt_verify.lens.tokens import numbered, visible

    return {i: visible(WORDS[i]) if i < len(WORDS) else numbered(i) for i in range(count)}


def report(*readings: Reading, of: Lens | None = None, text: str = "a text") -> LensReport:
    reference = of or lens()
    config = {"n_vocab": 11, "n_ctx": 24, "n_embd": 12, "n_head": 3, "n_layer": 3}
    return LensReport(
        checkpoint={
            "path": "models/tiny",
            "format": "openai",
            "config": config,
            "parameters": 5244,
        },
        text=text,
        names=names(max(11, int(reference.top_ids.max()) + 1, int(reference.tokens_T.max()) + 1)),
        readings=(Reading("reference", lens=reference), *readings),
        repeat="gpt-verify lens 'a text'",
    )


def told(reading: Reading, heads: int = 3, seed: int = 0) -> Reading:
    """The same reading with an attribution and patterns of attention, made by hand."""
    own = reading.lens
    assert own is not None
    rng = np.random.default_rng(seed)
    length, layers = len(own.tokens_T), len(own.sites) // 2
    following_T = np.append(own.tokens_T[1:], UNDEFINED)
    parts = part_names(own.sites)
    sums = {}
    for name, tokens_T in (("top1", own.top1_NT[-1]), ("next", following_T)):
        terms_ST = rng.normal(size=(len(parts), length))
        terms_ST[:, tokens_T == UNDEFINED] = np.nan
        sums[name] = Attribution(parts, tokens_T, terms_ST, terms_ST.sum(0), terms_ST.sum(0) * 0)
    patterns = {}
    for layer in range(layers):
        weights_HTS = rng.exponential(size=(heads, length, length)) * np.tri(length)
        patterns[layer] = weights_HTS / weights_HTS.sum(-1, keepdims=True)
    return dataclasses.replace(reading, attributions=sums, patterns=patterns)


def port(noise: float = 1e-6, name: str = "a-port", **more: object) -> Reading:
    return Reading(name, "float32", "cpu", lens=lens(noise=noise, **more))  # type: ignore[arg-type]
