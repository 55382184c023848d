"""Sums: with which coefficients, and of what.

Fitted are the coefficients of a sum, by least squares: of its own terms; with one term exchanged
for another site that the port has shown, or one more added. A sum of T · D elements leaves two or
three numbers no room to fit by chance. Of what is looked up, the terms are the rows of the two
tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, said, snapped
from gpt_verify.diagnosis.forms.terms import Term, other_sites, shown, summed, terms
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right

#: A coefficient of this part of the largest is none.
NONE = 1e-7


def fits(e: Evidence) -> Iterator[Fitted]:
    if e.site.looks_up:
        yield from _looked_up(e)
    own = terms(e)
    if not own or not np.isfinite(e.got).all():
        return
    yield from _parallel(e)
    yield _fitted(e, own, own)
    for some in _others(e, own):
        yield _fitted(e, own, some)


def _parallel(e: Evidence) -> Iterator[Fitted]:
    """Attention is added with the MLP, and not before it: what is shown between the two is the
    stream as it entered the block, which the MLP has read."""
    middle, attention = e.beside("resid_mid"), e.beside("attn.out")
    if e.site.kind != "resid_post" or middle is None or middle not in e.site.inputs:
        return
    entered, *added = e.at(middle).site.inputs
    if added != [attention]:
        return
    if not {middle, attention, entered} <= e.shown.keys():
        return
    if np.array_equal(e.shown[middle], e.shown[entered]):
        yield Fitted(
            {e.site.name: _with_attention},
            f"{attention} is added after the MLP, which reads the stream as it entered the block",
            fault="residual-parallel",
            explains=(middle,),
        )


def _with_attention(call: Call) -> Array:
    made: Array = right(call) + call.at("attn.out")
    return made


def _fitted(e: Evidence, own: Sequence[Term], some: Sequence[Term]) -> Fitted:
    coefficients = _least_squares(e.got, [term.value for term in some])
    largest = max(abs(c) for c in coefficients)
    parts: list[tuple[Term, Callable[[Array], Array] | None]] = []
    words = []
    for term, c in zip(some, coefficients, strict=True):
        if abs(c) <= NONE * largest:
            parts.append((term, np.zeros_like))
            continue
        c = snapped(float(c))
        parts.append((term, None if c == 1.0 and _is_own(term, own) else partial(_times, c)))
        words.append(_term(c, term.words))
    left_out = [(term, np.zeros_like) for term in own if not _is_own(term, some)]
    should = " + ".join(term.words for term in own)
    return summed(e, [*parts, *left_out], f"{' + '.join(words)}, not {should}")


def _is_own(term: Term, own: Sequence[Term]) -> bool:
    return term.name in [one.name for one in own]


def _times(c: float, x: Array) -> Array:
    made: Array = x.dtype.type(c) * x
    return made


def _term(c: float, name: str) -> str:
    """As exactly as it was found, where it is 1 at first sight."""
    if c == 1.0:
        return name
    return f"{said(c) if said(c) != '1' else f'{c:.12g}'} · {name}"


def _least_squares(got: Array, values: Sequence[Array]) -> Array:
    columns = np.stack([value.ravel() for value in values], axis=-1)
    found: Array = np.linalg.lstsq(columns, got.ravel(), rcond=None)[0]
    return found


def _others(e: Evidence, own: Sequence[Term]) -> Iterator[list[Term]]:
    """The best sum with one term exchanged, and the best with one more. By inner products, which
    choose well; the coefficients are fitted anew."""
    more = [shown(e, name) for name in other_sites(e, own)]
    every = [*own, *more]
    flat = np.stack([term.value.ravel() for term in every])
    gram, with_got = flat @ flat.T, flat @ e.got.ravel()

    def left(at: Sequence[int]) -> float:
        solved = np.linalg.lstsq(gram[np.ix_(at, at)], with_got[list(at)], rcond=None)[0]
        return -float(solved @ with_got[list(at)])

    n = len(own)
    others = range(n, len(every))
    exchanged = [[*range(i), other, *range(i + 1, n)] for i in range(n) for other in others]
    if exchanged:
        best = min(exchanged, key=left)
        # What stands in the place of a term belongs to the sum that this one belonged to.
        yield [replace(every[j], within=own[i].within) for i, j in enumerate(best)]
        best = min(([*range(n), other] for other in others), key=left)
        hidden = next((term.within for term in own if term.within), None)
        yield [*own, replace(every[best[-1]], within=hidden)]


def _looked_up(e: Evidence) -> Iterator[Fitted]:
    """The rows of the two tables times a number each."""
    if len(e.site.weights) < 2 or e.config.keys.table_offset or e.config.embed_scale:
        return
    wte, wpe = e.site.weights

    def rows(call: Call) -> tuple[Array, Array]:
        return call.w(wte)[call.tokens_T], call.w(wpe)[: len(call.tokens_T)]

    a, b = (snapped(float(c)) for c in _least_squares(e.got, rows(e.call)))

    def act(call: Call) -> Array:
        token, position = rows(call)
        return _times(a, token) + _times(b, position)

    words = f"{_term(a, 'wte[id]')} + {_term(b, 'wpe[position]')}"
    yield e.alone(act, f"{words}, not wte[id] + wpe[position]")


FORM = Form(
    "sum-coefficients",
    "adds other terms, or adds them with other coefficients",
    fits,
)
