"""Scores that the port shows, changed one by one: held within ends, or with something added.

Fitted are the ends of a clamp or of a tanh; or one number for each distance, for each source or for
each target, of each head, in which each number must meet all pairs that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.attended import visible
from gpt_verify.diagnosis.forms.changes import Change, Pair
from gpt_verify.diagnosis.forms.form import FEWEST, Array, Evidence, Fitted, Form, listed, said
from gpt_verify.diagnosis.forms.outputs import capped, clamped
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right

Index = NDArray[np.intp]
#: Numbers of two heads nearer to each other than this are one.
ALIKE = 1e-5


def elementwise(
    changes: Callable[[Pair], Iterator[Change]],
) -> Callable[[Evidence], Iterator[Fitted]]:
    """The form of a change that each score undergoes by itself."""

    def fits(e: Evidence) -> Iterator[Fitted]:
        if e.site.kind != "attn.scores":
            return
        counts = visible(e)
        got, should = e.got[counts], e.right[counts]
        if not len(got):
            return
        pair = Pair(should, got, float(abs(got).max()), 1, 0, e.config)
        for change in changes(pair):
            yield e.alone(partial(_after, change), f"scores {change.words}")

    return fits


def _after(change: Change, call: Call) -> Array:
    return change.act(right(call))


def biased(e: Evidence) -> Iterator[Fitted]:
    """Something is added that depends on the distance, the source or the target alone."""
    if e.site.kind != "attn.scores" or e.got.shape[-1] < FEWEST:
        return
    t, s = np.indices(e.got.shape[-2:])
    counts, places = visible(e), {"distance": np.abs(t - s), "source": s, "target": t}
    for words, place in places.items():
        of = np.asarray(place, np.intp)
        more = _means(e.got - e.right, counts, of)
        yield e.alone(partial(_added, more, of), _words(more, words))


def _means(error_HTS: Array, counts_HTS: NDArray[np.bool_], of_TS: Index) -> Array:
    """The mean error of each head over the pairs of each number, [H, N]."""
    more = np.zeros((len(error_HTS), int(of_TS.max()) + 1))
    for h, (error, counts) in enumerate(zip(error_HTS, counts_HTS, strict=True)):
        found, at = error[counts], of_TS[counts]
        n = np.bincount(at, minlength=more.shape[1])
        more[h] = np.bincount(at, found, minlength=more.shape[1]) / np.maximum(n, 1)
    return more


def _added(more_HN: Array, of_TS: Index, call: Call) -> Array:
    made: Array = right(call) + more_HN.astype(call.dtype)[:, of_TS]
    return made


def _words(more_HN: Array, unit: str) -> str:
    """By its slope, where it has one."""
    at = np.arange(more_HN.shape[1])
    slopes = [float(np.polyfit(at, more, 1)[0]) for more in more_HN]
    straight = all(
        np.ptp(more - slope * at) <= ALIKE * max(np.ptp(more), 1e-300)
        for more, slope in zip(more_HN, slopes, strict=True)
    )
    if straight:
        return f"a slope times the {unit} is added, by head: {listed(map(said, slopes), 4)}"
    each = "; ".join(
        f"head {h}: {listed(map(said, more), 4)}" for h, more in enumerate(more_HN[:3])
    )
    return f"added at {unit} 0, 1, 2 …: {each}"


CLAMPED = Form(
    "scores-clamped", "holds the scores of attention between two ends", elementwise(clamped)
)
CAPPED = Form("scores-capped", "caps the scores of attention by a tanh", elementwise(capped))
BIASED = Form("scores-biased", "adds to the scores what depends on the place alone", biased)
