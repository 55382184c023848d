"""Scores that are scaled: by how much, and with how much for each step of distance.

Fitted are two numbers for each head: what the scores are multiplied with, and what is added to them
for each step between target and source. By least squares where the port shows scores or a pattern
(whose logarithms differ as the scores do); by Newton's method where it shows only what was mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from gpt_verify.diagnosis.forms.attended import HIDDEN, by_head
from gpt_verify.diagnosis.forms.form import (
    Array,
    Evidence,
    Fitted,
    Form,
    said,
    snapped,
)
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.reference.positions import slopes as slopes_of

#: Where the search for a factor begins, beside 1.
STARTS = tuple(2.0**n for n in range(-6, 7))
STEPS = 30
#: Two heads with factors that are nearer than this have one.
ALIKE = 1e-5


def fits(e: Evidence, sloped: bool = False) -> Iterator[Fitted]:
    """
    Args:
        e: the evidence.
        sloped: nothing is multiplied; each step of distance adds something.
    """
    found = {"attn.scores": _of_scores, "attn.pattern": _of_pattern, "attn.mix": _of_mix}
    if e.site.kind in found:
        yield from found[e.site.kind](e, sloped)


def _distance(length: int, sources: int) -> Array:
    found: Array = (np.arange(sources)[None, :] - np.arange(length)[:, None]).astype(np.float64)
    return found


def _of_scores(e: Evidence, sloped: bool) -> Iterator[Fitted]:
    below = np.tri(*e.got.shape[-2:], dtype=np.bool_)
    apart = _distance(*e.got.shape[-2:])
    numbers = []
    for got, should in zip(e.got, e.right, strict=True):
        counts = below & (got > HIDDEN) & np.isfinite(got)
        numbers.append(_least_squares([should[counts], apart[counts]], got[counts]))
    yield from _fitted(e, e.site.name, numbers, sloped)


def _of_pattern(e: Evidence, sloped: bool) -> Iterator[Fitted]:
    """The logarithms of a pattern differ within a row as the scores do."""
    scores = e.call.x
    numbers = []
    for got, should in zip(e.got, scores, strict=True):
        counts = np.tri(*got.shape[-2:], dtype=np.bool_) & (got > 0) & (should > HIDDEN)
        rows = [_centred(x, counts) for x in (should, _distance(*got.shape))]
        log = _centred(np.log(np.where(counts, got, 1.0)), counts)
        numbers.append(_least_squares([row[counts] for row in rows], log[counts]))
    yield from _fitted(e, e.site.inputs[0], numbers, sloped, right_scores=False)


def _of_mix(e: Evidence, sloped: bool) -> Iterator[Fitted]:
    """Scores and pattern are hidden."""
    name, pattern = e.beside("attn.scores"), e.beside("attn.pattern")
    if name is None or pattern is None or not np.isfinite(e.got).all():
        return
    if {name, pattern} & e.shown.keys() or e.at(pattern).site.inputs != (name,):
        return
    raw, v = right(e.at(name)), e.call.part("v")
    got = by_head(e.got, e.config.n_head)
    numbers = []
    for h in range(e.config.n_head):
        one = _Head(e.at(pattern), raw[h], v[h], got[h])
        numbers.append(one.found())
    yield from _fitted(e, name, numbers, sloped)


class _Head:
    """One head whose scores are hidden."""

    def __init__(self, pattern: Call, raw: Array, v: Array, got: Array) -> None:
        self._pattern, self._raw, self._v, self._got = pattern, raw, v, got
        self._apart = _distance(*raw.shape)
        window = pattern.config.window(pattern.layer)
        below = np.tri(*raw.shape[-2:], dtype=np.bool_)
        if window is not None:
            below &= ~np.tri(len(raw), raw.shape[-1], -window, dtype=np.bool_)
        self._below = below

    def _left(self, factor: float, slope: float) -> Array:
        low = np.where(self._below, factor * self._raw + slope * self._apart, -np.inf)
        e = np.exp(low - low.max(axis=-1, keepdims=True))
        left: Array = (e / e.sum(axis=-1, keepdims=True)) @ self._v - self._got
        return left.ravel()

    def found(self) -> tuple[float, float]:
        """The factor and the slope that leave least."""
        starts = sorted(STARTS, key=lambda c: float(np.sum(self._left(c, 0.0) ** 2)))[:2]
        tried = [self._newton(start) for start in starts]
        return min(tried, key=lambda numbers: float(np.sum(self._left(*numbers) ** 2)))

    def _newton(self, start: float) -> tuple[float, float]:
        at = np.array([start, 0.0])
        left = self._left(*at)
        for _ in range(STEPS):
            h = 1e-6
            slopes = [
                (self._left(*(at + d)) - self._left(*(at - d))) / (2 * h) for d in h * np.eye(2)
            ]
            step = np.linalg.lstsq(np.stack(slopes, axis=-1), -left, rcond=None)[0]
            for shorter in (1.0, 0.25, 0.05):
                new = self._left(*(at + shorter * step))
                if np.sum(new**2) < np.sum(left**2):
                    at, left = at + shorter * step, new
                    break
            else:
                break
        return float(at[0]), float(at[1])


def _centred(x: Array, counts: Array) -> Array:
    """Less the mean of what counts in each row."""
    n = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    centred: Array = np.where(counts, x - np.where(counts, x, 0).sum(-1, keepdims=True) / n, 0.0)
    return centred


def _least_squares(terms: Sequence[Array], got: Array) -> tuple[float, float]:
    if got.size < 3:
        raise ValueError("too few scores")
    found = np.linalg.lstsq(np.stack(terms, axis=-1), got, rcond=None)[0]
    return float(found[0]), float(found[1])


def _fitted(
    e: Evidence,
    name: str,
    numbers: Sequence[tuple[float, float]],
    sloped: bool,
    right_scores: bool = True,
) -> Iterator[Fitted]:
    """First without a slope, then with; of slopes alone only these."""
    found = np.array(numbers)
    alone = bool((np.abs(found[:, 0] - 1) <= ALIKE).all())
    if alone:
        found[:, 0] = 1.0
    if sloped != alone:
        return
    for slopes in (1.0,) if alone else (0.0, 1.0):
        c_H = np.array([snapped(c) for c in found[:, 0]])
        m_H = np.array([snapped(m) for m in found[:, 1]]) * slopes
        change = partial(_changed, c_H, m_H)
        words = _words(c_H, m_H, slopes_of(len(c_H)) if e.config.keys.alibi else None)
        if right_scores:
            yield Fitted({name: lambda call, change=change: change(right(call))}, words)  # type: ignore[misc]
        else:
            yield e.alone(lambda call, change=change: _pattern(call, change(call.x)), words)  # type: ignore[misc]


def _pattern(call: Call, scores: Array) -> Array:
    values = {**{n: call.values[n] for n in call.site.inputs}, call.site.inputs[0]: scores}
    return right(replace(call, values=values))


def _changed(c_H: Array, m_H: Array, scores: Array) -> Array:
    c, m = (x.astype(scores.dtype)[:, None, None] for x in (c_H, m_H))
    apart = _distance(*scores.shape[-2:]).astype(scores.dtype)
    changed: Array = c * scores + m * apart
    return changed


def _words(c_H: Array, m_H: Array, alibi_H: Array | None) -> str:
    """
    Args:
        c_H, m_H: the factor and the slope of each head.
        alibi_H: the slopes that the model has, which are in the correct scores.
    """
    if np.ptp(c_H) <= ALIKE * np.abs(c_H).max() and not m_H.any():
        return f"scores × {said(float(np.median(c_H)))}"
    words = []
    for h, (c, m) in enumerate(zip(c_H, m_H, strict=True)):
        scaled = [f"scores × {said(c)}"] if abs(c - 1) > ALIKE else []
        sloped = [_slope(m, None if alibi_H is None else alibi_H[h])] if abs(m) > ALIKE else []
        if said_of_head := ", ".join(scaled + sloped):
            words.append(f"head {h}: {said_of_head}")
    return "; ".join(words[:4]) + (" …" if len(words) > 4 else "")


def _slope(m: float, should: float | None) -> str:
    if should is None:
        return f"{'less' if m > 0 else 'plus'} {said(abs(m))} for each step back"
    return f"a slope of {said(should + m)}, should be {said(should)}"


FORM = Form("scores-scaled", "scales the scores of attention", fits)
SLOPED = Form(
    "scores-sloped",
    "adds something to the scores of attention for each step of distance",
    partial(fits, sloped=True),
)
