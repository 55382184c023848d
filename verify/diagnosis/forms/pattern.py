"""A pattern whose rows are not what a softmax makes: cut off, or divided by something else.

Fitted are a threshold below which weights are zero, or how many of the largest are kept, and
whether what is left is normalised again; or what is added to the sum that a row is divided by. A
port that shows the pattern before it is changed shows the change in what is mixed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.attended import HIDDEN, by_head
from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, said, snapped
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.reference import ops

#: A pattern → what becomes of it.
Change = Callable[[Array], Array]
#: Thresholds that are tried at a time, and times.
AT_A_TIME, TIMES = 32, 6


def cut(e: Evidence) -> Iterator[Fitted]:
    """Small weights are dropped."""
    if e.site.kind not in ("attn.pattern", "attn.mix") or not np.isfinite(e.got).all():
        return
    if e.site.kind == "attn.pattern":
        act_of, should = after, e.right
    elif e.site.inputs[0] in e.shown:
        act_of, should = before, e.call.x
    else:
        return
    length = should.shape[-1]
    apart = partial(_apart, e, lambda change: act_of(change)(e.call))
    for again in (False, True):
        then = f"and the others are {'' if again else 'not '}normalised again"
        above, largest = partial(_above, again), partial(_largest, again)
        at = _threshold(np.unique(should), _Left(apart, above))
        words = f"weights below {said(at)} are zero, {then}"
        yield e.alone(act_of(partial(above, at)), words)
        most = min(range(1, length), key=_Left(apart, largest), default=0)
        if most:
            words = f"all but the {most} largest weights of a target are zero, {then}"
            yield e.alone(act_of(partial(largest, most)), words)


class _Left:
    """What a change with one number leaves."""

    def __init__(self, apart: Callable[[Change], float], of: Callable[[Any, Array], Array]) -> None:
        self._apart, self._of = apart, of

    def __call__(self, number: float) -> float:
        return self._apart(partial(self._of, number))


def _apart(e: Evidence, made: Callable[[Change], Array], change: Change) -> float:
    error = made(change) - e.got
    return float(np.sum(error * error))


def after(change: Change) -> Callable[[Call], Array]:
    """Of the operation that makes a pattern."""
    return lambda call: change(right(call))


def before(change: Change) -> Callable[[Call], Array]:
    """Of the operation that reads it."""

    def act(call: Call) -> Array:
        values = {name: call.values[name] for name in call.site.inputs}
        values[call.site.inputs[0]] = change(call.x)
        return right(replace(call, values=values))

    return act


def _threshold(values: Array, left: Callable[[float], float]) -> float:
    """The one that leaves least, of those that separate two values; narrowed down from a few that
    are spread over all of them."""
    low, high = 0, len(values) - 1
    for _ in range(TIMES):
        tried = np.unique(np.linspace(low, high, AT_A_TIME).round().astype(int))
        best = int(np.argmin([left(float(values[at])) for at in tried]))
        low, high = int(tried[max(best - 1, 0)]), int(tried[min(best + 1, len(tried) - 1)])
        found = int(tried[best])
        if high - low <= 2:
            break
    found = min(range(low, high + 1), key=lambda at: left(float(values[at])))
    return _shortest(float(values[max(found - 1, 0)]), float(values[found]))


def _above(again: bool, at: float, made: Array) -> Array:
    return _left(made, made >= at, again)


def _largest(again: bool, most: int, made: Array) -> Array:
    least = np.sort(made, axis=-1)[..., -most][..., None]
    return _left(made, made >= least, again)


def _left(made: Array, keeps: NDArray[np.bool_], again: bool) -> Array:
    left: Array = np.where(keeps, made, 0.0).astype(made.dtype)
    if not again:
        return left
    total = left.sum(axis=-1, keepdims=True)
    return np.asarray(left / np.where(total > 0, total, 1.0), made.dtype)


def _shortest(low: float, high: float) -> float:
    """The number of fewest digits above ``low`` and not above ``high``."""
    for digits in range(1, 17):
        step = 10.0 ** (np.floor(np.log10(high)) - digits + 1)
        at = float(f"{np.floor(high / step) * step:.{digits}g}")
        if low < at <= high:
            return at
    return high


def divided(e: Evidence) -> Iterator[Fitted]:
    """Each row of the softmax is divided by a constant more than the sum of its powers."""
    name = e.beside("attn.pattern")
    if name is None or e.at(name).site.weights or not np.isfinite(e.got).all():
        return
    if e.site.kind == "attn.pattern":
        sums_HT = e.got.sum(axis=-1)
    elif e.site.kind == "attn.mix" and name not in e.shown:
        got, should = (by_head(x, e.config.n_head) for x in (e.got, e.right))
        sums_HT = np.sum(got * should, axis=-1) / np.sum(should * should, axis=-1)
    else:
        return
    low = _seen(e.at(name))
    if not (sums_HT > 0).all() or not (low.max(axis=-1) > HIDDEN).all():
        return
    # e^s / (S + c), where S = Σ e^s, sums up to S / (S + c): c = S (1 / sum - 1).
    added = np.exp(low).sum(axis=-1) * (1.0 / sums_HT - 1.0)
    constant = snapped(float(np.median(added)))
    words = f"{said(constant)} is added to the sum of the softmax"
    yield Fitted({name: partial(_with, constant)}, words)


def _seen(call: Call) -> Array:
    """The scores, -∞ where they are masked."""
    return np.where(ops.sees(call.x.shape[-2:], call.config.window(call.layer)), call.x, -np.inf)


def _with(constant: float, call: Call) -> Array:
    powers = np.exp(_seen(call))
    made: Array = powers / (powers.sum(axis=-1, keepdims=True) + call.dtype(constant))
    return made


CUT = Form("pattern-cut", "drops small weights of the pattern", cut)
DIVIDED = Form("pattern-divided", "divides the pattern by another sum", divided)
