"""Something simple that is done to a value: after it was made, or before it is added to another.

What a port shows is the value before; the next thing that it shows is the one after. Where that is
the operation's own result the two are compared at once; in a sum the changed term is what is left
when the other terms are taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted
from gpt_verify.diagnosis.forms.terms import summed, terms
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import QKV, split_qkv, tensor_table
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
        vectors: words → the biases and gains of the model that are as long as a position of it.
    """

    should: Array
    got: Array
    largest: float
    rows: int
    heads: int
    config: Config
    vectors: Callable[[], Iterable[tuple[str, Array]]] = tuple


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
        vectors = partial(_vectors, e)
        pair = Pair(e.right, e.got, largest, len(e.batch), e.site.heads, e.config, vectors)
        for change in changes(pair):
            yield e.alone(_after(change), change.words, change.quantising)
        own, table = terms(e), sites(e.config)
        for term in own:
            rest = e.got - sum(other.value for other in own if other is not term)
            size = float(abs(rest).max())
            pair = Pair(term.value, rest, size, 1, e.site.heads, e.config, vectors)
            for change in changes(pair):
                parts = [(one, change.act if one is term else None) for one in own]
                what = table[term.name].kind if term.name in table else term.words
                yield summed(e, parts, f"{what} before it is added: {change.words}")

    return fits


def _vectors(e: Evidence) -> Iterator[tuple[str, Array]]:
    """The biases and gains of the layer of an operation, and those of no layer."""
    width, table = e.got.shape[-1], tensor_table(e.config)
    elsewhere = set[str]().union(
        *(site.weights for site in sites(e.config).values() if site.layer != e.site.layer)
    )
    for name, spec in table.items():
        if len(spec.shape) != 1 or name in elsewhere:
            continue
        value = e.call.w(name)
        parts = dict(zip(QKV, split_qkv(value), strict=True)) if spec.parts == QKV else {}
        for part, piece in {"": value, **parts}.items():
            if piece.shape == (width,):
                yield f"the {spec.role} {name}" + (f" ({part})" if part else ""), piece


def _after(change: Change) -> Callable[[Call], Array]:
    return lambda call: change.act(right(call))
