"""Tiles of the sources that weigh more or less than they should, as where the parts of a softmax
that were computed one after the other are put together with the wrong maxima or sums.

Fitted is one factor for each tile that a target sees, of at most half as many tiles as a head has
channels. The pattern of FlashAttention (Dao et al. 2022, arXiv 2205.14135, algorithm 1, line 12) is
put together so; so are the splits of a long cache and the parts of several devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from gpt_verify.diagnosis.forms.attended import by_head
from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, said
from gpt_verify.diagnosis.forms.pattern import after, before
from gpt_verify.reference import ops

#: The fewest sources of a tile; the fewest channels of a head for each factor that is fitted.
SMALLEST, CHANNELS = 4, 2
#: Factors that are nearer to each other than this are one.
ALIKE = 1e-3


def fits(e: Evidence) -> Iterator[Fitted]:
    """Tiles of a power of two, the largest first."""
    if e.site.kind not in ("attn.pattern", "attn.mix") or not np.isfinite(e.got).all():
        return
    of_pattern = e.site.kind == "attn.pattern"
    pattern = e.right if of_pattern else e.call.x
    length = pattern.shape[-1]
    size = 1 << (length - 1).bit_length() - 1
    while size >= SMALLEST:
        tile_S = np.arange(length) // size
        if not of_pattern and CHANNELS * (tile_S[-1] + 1) > e.config.head_size:
            return
        factor_HTJ = _of_pattern(e, tile_S) if of_pattern else _of_mix(e, tile_S)
        seen = _sums(pattern, tile_S) > 0
        apart = np.where(seen, factor_HTJ, np.nan)
        spread_HT = np.nanmax(apart, axis=-1) - np.nanmin(apart, axis=-1)
        if spread_HT.max() > ALIKE:
            factor_HTS = np.where(seen, factor_HTJ, 1.0)[..., tile_S]
            act = (after if of_pattern else before)(partial(_weighted, factor_HTS))
            yield e.alone(act, _words(apart, spread_HT, size))
        size //= 2


def _sums(pattern_HTS: Array, tile_S: Array) -> Array:
    """What the sources of each tile weigh together, [H, T, J]."""
    starts = np.flatnonzero(np.diff(tile_S, prepend=-1))
    found: Array = np.add.reduceat(pattern_HTS, starts, axis=-1)
    return found


def _of_pattern(e: Evidence, tile_S: Array) -> Array:
    should = _sums(e.right, tile_S)
    return _sums(e.got, tile_S) / np.where(should > 0, should, 1.0)


def _of_mix(e: Evidence, tile_S: Array) -> Array:
    """By least squares over the channels of a head, of each target."""
    v = e.call.part("v")
    mixes = [
        by_head(ops.attention_mix(np.where(tile_S == tile, e.call.x, 0.0), v), e.config.n_head)
        for tile in range(tile_S[-1] + 1)
    ]
    mix_HTKJ, got_HTK = np.stack(mixes, axis=-1), by_head(e.got, e.config.n_head)
    found: Array = (np.linalg.pinv(mix_HTKJ) @ got_HTK[..., None])[..., 0]
    return found


def _weighted(factor_HTS: Array, pattern_HTS: Array) -> Array:
    made: Array = pattern_HTS * factor_HTS.astype(pattern_HTS.dtype)
    return made


def _words(apart: Array, spread_HT: Array, size: int) -> str:
    """Those of the target in which they differ most."""
    head, target = np.unravel_index(np.argmax(spread_HT), spread_HT.shape)
    factors = apart[head, target]
    listing = ", ".join(
        f"sources {tile * size} … {min((tile + 1) * size - 1, target)} × {said(float(factor))}"
        for tile, factor in enumerate(factors)
        if np.isfinite(factor)
    )
    return f"tiles of {size} sources weigh otherwise (head {head}, target {target}: {listing})"


FORM = Form("pattern-tiles", "gives tiles of the sources other weights", fits)
