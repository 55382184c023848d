"""Faults of scores that fall with the distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array
from gpt_verify.reference.positions import alibi, slopes

#: Slopes of the H heads, [H].
Slopes = Callable[[int], Array]


def _sloped(slopes_of: Slopes, call: Call) -> Array:
    return alibi(call.x, np.tile(slopes_of(call.config.n_head), call.rows))


def _naive(n_head: int) -> Array:
    """As if the number of heads were a power of two."""
    return np.asarray(2.0 ** (-8.0 * np.arange(1, n_head + 1) / n_head))


def _inject(slopes_of: Slopes, decoder: Decoder, layers: Sequence[int]) -> None:
    """BLOOM's attention is handed slope · s for each row and head, [B H, 1, S]."""
    mistaken = slopes_of(decoder.config.n_head).tolist()

    def forward(attn: Any, act: Any, *args: Any, **more: Any) -> Any:
        given = more["alibi"]
        own = torch.tensor(mistaken, dtype=given.dtype).repeat(len(given) // len(mistaken))
        more["alibi"] = own[:, None, None] * torch.arange(given.shape[-1]).to(given.dtype)
        return act(*args, **more)

    for layer in layers:
        wrap(decoder.attention(layer), "forward", forward)


def _fault(
    name: str,
    summary: str,
    slopes_of: Slopes,
    of: Callable[[Config], bool] = lambda config: True,
    seen: str = "",
) -> Fault:
    return Fault(
        name,
        "alibi",
        summary,
        seen,
        predict=AtSites({"attn.sloped": partial(_sloped, slopes_of)}),
        in_family=InTransformers(module=partial(_inject, slopes_of)),
        of=lambda config: config.keys.alibi and of(config),
    )


FAULTS = (
    _fault("alibi-missing", "has no slopes: scores do not fall with the distance", np.zeros),
    _fault(
        "alibi-uniform",
        "lets the scores of all heads fall alike",
        lambda n_head: np.full(n_head, 2.0 ** (-8.0 / n_head)),
        lambda config: config.n_head > 1,
    ),
    _fault(
        "alibi-rising",
        "lets scores rise with the distance",
        lambda n_head: -slopes(n_head),
        seen="the sign of the distance, s - t for t - s",
    ),
    _fault(
        "alibi-naive",
        "takes slopes for a number of heads that is a power of two, which it is not",
        _naive,
        lambda config: config.n_head & (config.n_head - 1) > 0,
        "get_slopes without its second case",
    ),
)
