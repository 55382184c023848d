"""What an operation makes, and then something simple: a factor, a constant, a limit, another order.

Fitted are one factor (of all, of each head, each channel, each position), one vector that is added
at every position, the two ends of what is let through, or which channel or position stands in each
place. With one number for each channel there must be four positions and more, and the other way
round.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import permutations

import numpy as np

from gpt_verify.diagnosis.forms.changes import Change, Pair, of_values
from gpt_verify.diagnosis.forms.form import FEWEST, Array, Form, listed, said, snapped
from gpt_verify.diagnosis.forms.order import Order, described
from gpt_verify.reference import ops

#: Factors nearer to each other than this are one.
ALIKE = 1e-5
#: Channels or heads of one kind that are named.
MOST = 3
#: The most channels that are compared with each other.
WIDEST = 8192


def scaled(pair: Pair) -> Iterator[Change]:
    """Times a factor."""
    got, should = pair.got, pair.should
    if not np.isfinite(got).all() or not np.isfinite(should).all():
        return
    yield _times(_factor(got, should, None), "")
    if got.ndim == 3:
        yield _times(_factor(got, should, (1, 2)), "head")
        return
    if pair.heads:
        split = (len(got), pair.heads, -1)
        factor_H = _factor(got.reshape(split), should.reshape(split), (0, 2)).ravel()
        each = np.repeat(factor_H, got.shape[-1] // pair.heads)[None]
        yield Change(partial(_multiplied, each), _factor_words(factor_H, "head"))
    if len(got) >= FEWEST:
        yield _times(_factor(got, should, (0,)), "channel")
    yield _times(_factor(got, should, (1,)), "position")


def _factor(got: Array, should: Array, axes: tuple[int, ...] | None) -> Array:
    power = np.sum(should * should, axis=axes, keepdims=True)
    found: Array = np.sum(got * should, axis=axes, keepdims=True) / np.where(power > 0, power, 1.0)
    return found


def _times(factor: Array, unit: str) -> Change:
    factor = np.vectorize(snapped)(factor)
    return Change(partial(_multiplied, factor), _factor_words(factor.ravel(), unit))


def _multiplied(factor: Array, x: Array) -> Array:
    made: Array = x * factor.astype(x.dtype)
    return made


def _factor_words(factors: Array, unit: str) -> str:
    if not unit:
        return f"× {said(float(factors[0]))}"
    other = np.flatnonzero(np.abs(factors - 1.0) > ALIKE)
    if len(other) <= MOST:
        return ", ".join(f"{unit} {at} × {said(float(factors[at]))}" for at in other)
    stretch = np.array_equal(other, np.arange(other[0], other[-1] + 1))
    if stretch and np.ptp(factors[other]) <= ALIKE:
        return f"{unit}s {other[0]} … {other[-1]} × {said(float(factors[other[0]]))}"
    return f"× a number of each {unit}: {listed(map(said, factors), 4)}"


def shifted(pair: Pair) -> Iterator[Change]:
    """One vector more at every position."""
    if pair.got.ndim != 2 or len(pair.got) < FEWEST or not np.isfinite(pair.got).all():
        return
    more = np.mean(pair.got - pair.should, axis=0)
    yield Change(lambda x: x + more.astype(x.dtype), _known(more, pair) or _vector_words(more))


def _known(more: Array, pair: Pair) -> str:
    """Which bias or gain of the model a vector is; empty where it is none."""
    for name, vector in pair.vectors():
        near = ALIKE * float(np.max(np.abs(vector)))
        if not near:
            continue
        if float(np.max(np.abs(more - vector))) <= near:
            return f"{name} is added at every position"
        if float(np.max(np.abs(more + vector))) <= near:
            return f"{name} is left out at every position"
    return ""


def _vector_words(more: Array) -> str:
    largest = float(np.max(np.abs(more)))
    other = np.flatnonzero(np.abs(more) > ALIKE * largest)
    if len(other) > MOST:
        if float(np.ptp(more)) <= ALIKE * largest:
            return f"{said(float(more.mean()))} is added to every element"
        size = float(np.sqrt(np.mean(more**2)))
        return f"one vector is added at every position, of RMS {said(size)}"
    return ", ".join(f"{said(float(more[at]))} is added to channel {at}" for at in other)


def clamped(pair: Pair) -> Iterator[Change]:
    """Held below one end, above one, or between two."""
    if not np.isfinite(pair.got).all():
        return
    low, high = float(pair.got.min()), float(pair.got.max())
    below, above = float(pair.should.min()) < low, float(pair.should.max()) > high
    # Rounding puts an end that is none a little within the numbers: one end is tried first.
    for lowest, highest in ((False, True), (True, False), (True, True)):
        if lowest <= below and highest <= above:
            ends = [f"no less than {said(low)}"] * lowest + [f"no more than {said(high)}"] * highest
            between = (low if lowest else -np.inf), (high if highest else np.inf)
            yield Change(partial(_held, *between), " and ".join(ends))


def _held(low: float, high: float, x: Array) -> Array:
    return np.clip(x, low, high).astype(x.dtype)


def fixed(pair: Pair) -> Iterator[Change]:
    """Some channels are one number at all positions."""
    got = pair.got
    if got.ndim != 2 or len(got) < FEWEST or np.isnan(got).any():
        return
    constant = (got == got[0]).all(axis=0) & (pair.should != pair.should[0]).any(axis=0)
    at = np.flatnonzero(constant)
    if 0 < len(at) < got.shape[-1]:
        values = got[0, at]
        unit = "the logit of token" if got.shape[-1] == pair.config.n_vocab else "channel"
        listing = ", ".join(
            f"{unit} {c} is always {said(float(v))}"
            for c, v in zip(at[:MOST], values, strict=False)
        )
        more = f", and {len(at) - MOST} more" if len(at) > MOST else ""
        if heads := _whole_heads(at, pair):
            listing = f"head{'s' * (len(heads) > 1)} {listed(heads)}: {listing}"

        def act(x: Array) -> Array:
            made = x.copy()
            made[:, at] = values
            return made

        yield Change(act, listing + more)


def _whole_heads(channels: Order, pair: Pair) -> list[int]:
    """The heads that these channels are, where they are some, whole."""
    size = pair.config.head_size
    if not pair.heads or pair.got.shape[-1] != pair.heads * size:
        return []
    heads = sorted({int(channel) // size for channel in channels})
    return heads if len(channels) == len(heads) * size else []


def capped(pair: Pair) -> Iterator[Change]:
    """c tanh(x / c)."""
    got, should = pair.got.ravel(), pair.should.ravel()
    if pair.got.ndim > 2 or not np.isfinite(got).all() or not np.abs(got).max() > 0:
        return
    cap = 1.5 * float(np.abs(got).max())
    for _ in range(60):
        made, h = cap * np.tanh(should / cap), 1e-6 * cap
        slope = ((cap + h) * np.tanh(should / (cap + h)) - made) / h
        power = float(slope @ slope)
        if power == 0:
            return
        step = float(slope @ (got - made)) / power
        cap = max(cap + step, cap / 2)
        if abs(step) <= 1e-14 * cap:
            break
    cap = snapped(cap)
    yield Change(lambda x: ops.soft_cap(x, cap), f"capped at ±{said(cap)} by a tanh")


def permuted(pair: Pair) -> Iterator[Change]:
    """Channels, then positions, then whatever a reshape that is none makes."""
    got, should = pair.got, pair.should
    if got.ndim != 2 or not np.isfinite(got).all() or len(got) < FEWEST:
        return
    length, width = got.shape
    if width <= WIDEST:
        order = _nearest(got.T, should.T)
        per_head = width // pair.heads if pair.heads else 0
        sizes = (per_head, pair.config.n_embd, pair.config.head_size)
        yield Change(lambda x: x[:, order], described(order, "channel", sizes))
    at = _nearest(got, should)
    yield Change(lambda x: x[at], described(at, "position"))
    heads = pair.config.n_head if width % pair.config.n_head == 0 else 1
    yield from _reread(pair, (length, heads, width // heads))


def _nearest(got: Array, should: Array) -> Order:
    """For each row, which of the expected ones it is."""
    apart = np.sum(should * should, axis=-1) - 2 * got @ should.T
    nearest: Order = np.argmin(apart, axis=-1)
    return nearest


def _reread(pair: Pair, sizes: tuple[int, int, int]) -> Iterator[Change]:
    """[T, heads, channels] in another order, read as [T, D]."""
    for axes in permutations(range(3)):
        if axes != (0, 1, 2):
            names = ", ".join(("position", "head", "channel")[axis] for axis in axes)
            act = partial(_laid_out, sizes, axes)
            if np.allclose(act(pair.should), pair.got, rtol=1e-2, atol=1e-2 * pair.largest):
                yield Change(act, f"laid out as [{names}], read as [position, head, channel]")


def _laid_out(sizes: tuple[int, int, int], axes: tuple[int, ...], x: Array) -> Array:
    return x.reshape(sizes).transpose(axes).reshape(x.shape)


SCALED = Form("output-scaled", "multiplies what an operation has made", of_values(scaled))
SHIFTED = Form("constant-added", "adds a constant to what it has made", of_values(shifted))
CLAMPED = Form("output-clamped", "clamps what an operation has made", of_values(clamped))
CAPPED = Form("output-capped", "caps what an operation has made", of_values(capped))
FIXED = Form("output-fixed", "makes some channels the same at all positions", of_values(fixed))
PERMUTED = Form("output-permuted", "puts what it has made in other places", of_values(permuted))
