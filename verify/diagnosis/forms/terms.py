"""The terms of a sum, those of sums before it that a port does not show among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.graph.table import made_by
from gpt_verify.sites import Site, sites

#: Words of the two rows that are looked up.
TOKEN, POSITION = "wte[id]", "wpe[position]"


@dataclass(frozen=True)
class Term:
    """One term.

    Attributes:
        name: the site; of a row that is looked up, where it is.
        words: what it is called: ``x``, ``f(x)``, ``attn.out``.
        value: what the port has shown.
        of: the same from an operation's inputs.
        within: the hidden sum that it belongs to; None of the sum that is judged.
    """

    name: str
    words: str
    value: Array
    of: Callable[[Call], Array]
    within: str | None = None


def terms(e: Evidence) -> list[Term]:
    """Of a sum that was shown; empty where some term is hidden."""
    if not e.site.is_sum:
        return []
    try:
        found = list(_terms(e, e.site, None))
    except KeyError:
        return []
    if len(found) == 2 and all(term.within is None for term in found):
        first, last = found
        return [Term(first.name, "x", first.value, first.of), _called(last, "f(x)")]
    if found[0].name in e.shown:
        found[0] = _called(found[0], "x")
    return found


def _called(term: Term, words: str) -> Term:
    return Term(term.name, words, term.value, term.of, term.within)


def _terms(e: Evidence, site: Site, within: str | None) -> Iterator[Term]:
    for name in site.inputs:
        made = sites(e.config)[name]
        if name in e.shown:
            yield shown(e, name, within)
        elif made_by(made).adds:
            yield from _terms(e, made, within or name)
        elif made.looks_up and len(made.weights) == 2 and not e.config.keys.table_offset:
            yield from _rows(e, made, within or name)
        else:
            raise KeyError(name)


def shown(e: Evidence, name: str, within: str | None = None) -> Term:
    """A site as a term; what is of the same layer by its kind, so that all layers read alike."""
    made = sites(e.config)[name]
    words = made.kind if made.layer == e.site.layer else name
    return Term(name, words, e.shown[name], lambda call: call.values[name], within)


def _rows(e: Evidence, made: Site, within: str) -> Iterator[Term]:
    """The two rows that are added in an embedding that is hidden."""
    wte, wpe = made.weights

    def token(call: Call) -> Array:
        row: Array = call.w(wte)[call.tokens_T]
        return row

    def position(call: Call) -> Array:
        return call.w(wpe)[: len(call.tokens_T)]

    yield Term(wte, TOKEN, token(e.call), token, within)
    yield Term(wpe, POSITION, position(e.call), position, within)


def summed(
    e: Evidence, parts: Sequence[tuple[Term, Callable[[Array], Array] | None]], words: str
) -> Fitted:
    """The sum of terms, each of them changed or as it is (None).

    Where all that is changed is within one sum that is hidden, that is what is wrong: what reads it
    besides is then wrong in the same way.
    """
    changed = {term.within for term, change in parts if change is not None}
    name = changed.pop() if len(changed) == 1 else None
    inner = [pair for pair in parts if pair[0].within == name] if name else parts

    def act(call: Call) -> Array:
        total: Array = np.zeros((), call.dtype)
        for term, change in inner:
            value = np.asarray(term.of(call), call.dtype)
            total = total + (value if change is None else np.asarray(change(value), call.dtype))
        return total

    also = {
        term.name: _then(change)
        for term, change in parts
        if change is not None and term.name in e.shown
    }
    return Fitted({name or e.site.name: act}, words, also=also)


def _then(change: Callable[[Array], Array]) -> Override:
    return lambda call: change(right(call))


def other_sites(e: Evidence, own: Sequence[Term]) -> Mapping[str, Array]:
    """What the port has shown besides, of the same shape."""
    names = {term.name for term in own}
    return {n: v for n, v in e.shown.items() if n not in names and v.shape == e.got.shape}
