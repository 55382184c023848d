"""Who sees whom: which sources each target sees.

Fitted is a set of sources for each target, the same in all heads. It is read off a pattern or
masked scores where the port shows them. Where it shows only what attention has mixed, the set is
searched for: the best stretch of sources, then source by source as long as that brings the mix
nearer. Each target has as many equations as the model is wide, and no more unknowns than sources.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.attended import HIDDEN, by_head, scores
from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form
from gpt_verify.diagnosis.forms.seen import described
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right

Seen = NDArray[np.bool_]


def fits(e: Evidence) -> Iterator[Fitted]:
    found = {"attn.scores": _of_scores, "attn.pattern": _of_pattern, "attn.mix": _of_mix}
    if e.site.kind in found:
        yield from found[e.site.kind](e)


def _of_scores(e: Evidence) -> Iterator[Fitted]:
    """Scores that are masked already."""
    seen_HTS = e.got > HIDDEN
    for seen_TS, words in _in_heads(seen_HTS):
        yield e.alone(
            lambda call, seen=seen_TS: np.where(seen, right(call), -np.inf),  # type: ignore[misc]
            words,
        )


def _of_pattern(e: Evidence) -> Iterator[Fitted]:
    if e.site.weights or not np.isfinite(e.got).all():
        return
    seen_HTS = e.got > 0
    # A target that sees nobody may look at all alike.
    spread_HT = e.got.max(axis=-1) - e.got.min(axis=-1)
    alike_T = (spread_HT < 1e-6 * e.got.max(axis=-1)).all(axis=0)
    alike_T &= seen_HTS.all(axis=(0, 2))
    for seen_HTS_, words in _in_heads(np.where(alike_T[:, None], False, seen_HTS), alike_T):
        yield e.alone(lambda call, seen=seen_HTS_: _pattern(call, seen, alike_T), words)  # type: ignore[misc]


def _of_mix(e: Evidence) -> Iterator[Fitted]:
    """The pattern is hidden."""
    name = e.beside("attn.pattern")
    if name is None or name in e.shown or not np.isfinite(e.got).all():
        return
    pattern = e.at(name)
    if pattern.site.weights:
        return
    with np.errstate(all="ignore"):
        seen_TS, alike_T = _searched(
            scores(pattern), e.call.part("v"), by_head(e.got, e.config.n_head)
        )
    words = described(seen_TS, alike_T)
    yield Fitted({name: lambda call: _pattern(call, seen_TS, alike_T)}, words)


def _pattern(call: Call, seen: Seen, alike_T: Seen) -> Array:
    """The softmax over what is seen; zeros where nothing is."""
    low = np.where(seen, scores(call), -np.inf)
    largest = np.max(low, axis=-1, keepdims=True)
    e = np.where(seen, np.exp(low - np.where(np.isfinite(largest), largest, 0.0)), 0.0)
    total = e.sum(axis=-1, keepdims=True)
    value: Array = e / np.where(total > 0, total, 1.0)
    alike_T = np.broadcast_to(alike_T[:, None], value.shape)
    return np.where(alike_T, call.dtype(1.0 / value.shape[-1]), value)


def _in_heads(seen_HTS: Seen, alike_T: Seen | None = None) -> Iterator[tuple[Seen, str]]:
    """What is seen by all heads; where they differ, of each that does not see what it should."""
    first = seen_HTS[0]
    if (seen_HTS == first).all():
        yield first, described(first, alike_T)
        return
    causal = np.tri(*first.shape, dtype=np.bool_)
    other = [h for h, seen in enumerate(seen_HTS) if not np.array_equal(seen, causal)]
    words = "; ".join(f"head {h}: {described(seen_HTS[h], alike_T)}" for h in other[:3])
    yield seen_HTS, words + (f"; and {len(other) - 3} more heads" if len(other) > 3 else "")


def _searched(raw_HTS: Array, v_HSK: Array, got_HTK: Array) -> tuple[Seen, Seen]:
    """For each target, the sources whose mix is nearest to what was made; whether it is that of
    all sources alike."""
    length, sources = raw_HTS.shape[-2:]
    seen_TS = np.zeros((length, sources), np.bool_)
    alike_T = np.zeros(length, np.bool_)
    mean_HK = v_HSK.mean(axis=1)
    for t in range(length):
        got_HK = got_HTK[:, t]
        e_HS = np.exp(raw_HTS[:, t] - raw_HTS[:, t].max(axis=-1, keepdims=True))
        starts = [_stretch(e_HS, v_HSK, got_HK), np.arange(sources) <= t]
        improved = [_improved(e_HS, v_HSK, got_HK, start) for start in starts]
        error, seen_TS[t] = min(improved, key=lambda pair: pair[0])
        if np.sum(got_HK**2) < error:
            error, seen_TS[t] = float(np.sum(got_HK**2)), False
        if np.sum((got_HK - mean_HK) ** 2) < error:
            alike_T[t], seen_TS[t] = True, False
    return seen_TS, alike_T


def _stretch(e_HS: Array, v_HSK: Array, got_HK: Array) -> Seen:
    """The best of all stretches of sources, by running sums."""
    sources = e_HS.shape[-1]
    above = np.concatenate(
        [np.zeros_like(v_HSK[:, :1]), np.cumsum(e_HS[..., None] * v_HSK, axis=1)], axis=1
    )
    below = np.concatenate([np.zeros_like(e_HS[:, :1]), np.cumsum(e_HS, axis=1)], axis=1)
    best, least = (0, sources), np.inf
    for first in range(sources):
        total_HNK = above[:, first + 1 :] - above[:, first : first + 1]
        mix_HNK = total_HNK / (below[:, first + 1 :] - below[:, first : first + 1])[..., None]
        error_N = np.sum((mix_HNK - got_HK[:, None]) ** 2, axis=(0, 2))
        error_N = np.where(np.isfinite(error_N), error_N, np.inf)
        last = int(np.argmin(error_N))
        if error_N[last] < least:
            best, least = (first, first + 1 + last), float(error_N[last])
    at = np.arange(sources)
    found: Seen = (at >= best[0]) & (at < best[1])
    return found


def _improved(e_HS: Array, v_HSK: Array, got_HK: Array, seen_S: Seen) -> tuple[float, Seen]:
    """One source more or less, as long as that helps."""
    seen_S = seen_S.copy()
    weighted_HSK = e_HS[..., None] * v_HSK
    error = np.inf
    for _ in range(2 * len(seen_S)):
        above_HK = weighted_HSK[:, seen_S].sum(axis=1)
        below_H = e_HS[:, seen_S].sum(axis=1)
        error = float(np.sum((above_HK / below_H[:, None] - got_HK) ** 2))
        sign_S = np.where(seen_S, -1.0, 1.0)
        above_HSK = above_HK[:, None] + sign_S[:, None] * weighted_HSK
        below_HS = below_H[:, None] + sign_S * e_HS
        error_S = np.sum((above_HSK / below_HS[..., None] - got_HK[:, None]) ** 2, axis=(0, 2))
        error_S = np.where(np.isfinite(error_S), error_S, np.inf)
        flip = int(np.argmin(error_S))
        if not error_S[flip] < error:
            break
        seen_S[flip] = not seen_S[flip]
    return (error if np.isfinite(error) else np.inf), seen_S


FORM = Form("pattern-support", "lets targets see other sources", fits)
