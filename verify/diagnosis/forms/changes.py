"""Something simple that is done to a value: after it was made, or before it is added to another.

What a port shows is the value before; the next thing that it shows is the one after. Where that is
the operation's own result the two are compared at once; in a sum the changed term is what is left
when the other terms are taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted
from gpt_verify.diagnosis.forms.terms import summed, terms
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites


@dataclass(frozen=True)
class Pair:
    """A value as it should be, and as it is.

    Attributes:
        should: as the reference has it.
        got: as the port has it.
        largest: the largest size of what the port has, in all rows of the batch.
        rows: how many those are.
        heads: how many heads lie side by side in it.
        config: of the model.
    """

    should: Array
    got: Array
    largest: float
    rows: int
    heads: int
    config: Config


@dataclass(frozen=True)
class Change:
    """What may have been done.

    Attributes:
        act: does it.
        words: says it.
        quantising: as of ``AtSites``.
    """

    act: Callable[[Array], Array]
    words: str
    quantising: bool = False


Changes = Callable[[Pair], Iterable[Change]]


def of_values(changes: Changes) -> Callable[[Evidence], Iterator[Fitted]]:
    """The form of an operation that changes what is made, or one term of a sum."""

    def fits(e: Evidence) -> Iterator[Fitted]:
        largest = float(abs(e.batch).max())
        pair = Pair(e.right, e.got, largest, len(e.batch), e.site.heads, e.config)
        for change in changes(pair):
            yield e.alone(_after(change), change.words, change.quantising)
        own, table = terms(e), sites(e.config)
        for term in own:
            rest = e.got - sum(other.value for other in own if other is not term)
            pair = Pair(term.value, rest, float(abs(rest).max()), 1, e.site.heads, e.config)
            for change in changes(pair):
                parts = [(one, change.act if one is term else None) for one in own]
                what = table[term.name].kind if term.name in table else term.words
                yield summed(e, parts, f"{what} before it is added: {change.words}")

    return fits


def _after(change: Change) -> Callable[[Call], Array]:
    return lambda call: change.act(right(call))
