"""Several MLPs in the place of one: where their weights are rounded, and their sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.operations.experts import expert
from gpt_verify.graph.operations.routing import experts_of, undecided
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.recipes.activations import GATES, sigmoid
from gpt_verify.recipes.arithmetic import Array, Span, constant, exact, product, total
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.recipes.softmax import shifted
from gpt_verify.reference.activations import CLAMP, CLAMPED_SLOPE
from gpt_verify.reference.config import Config
from gpt_verify.reference.experts import chosen

Rows = NDArray[np.intp]


def _routing(read: Read, way: str) -> Span:
    """Weights of the chosen experts, [T, E], zero of the others. Of two that are equal either may
    be chosen, and then nothing is known of that token."""
    router, kind, p = read.input(), experts_of(read.config), read.declared
    found = chosen(router.mid, kind.chosen)
    over = found if kind.renormalised and way != "stored" else np.ones(found.shape, np.bool_)
    away = shifted(router, over)
    away = away.store(p) if way == "steps" else away
    made = away.map(np.exp, FLOAT32.exp_ulp)
    made = (made.store(p) if way == "steps" else made).select(over)
    divisor = total(made)
    made = made / (divisor.store(p) if way == "steps" else divisor)
    free = undecided(Measured(router.mid), kind)
    if way == "stored":
        made = made.store(p)
        # What is chosen among is stored, and more of it is equal than of what it is made of.
        away_TE = np.maximum(made.high - made.mid, made.mid - made.low)
        free = undecided(Measured(made.mid, away_TE), kind)
        made = made.select(found)
        made = made / total(made).store(p) if kind.renormalised else made
    made = made.select(found).loose(2)  # a sum over all, and then one over the chosen
    free_T1 = free[:, None]
    return Span(np.where(free_T1, 0.0, made.low), made.mid, np.where(free_T1, 1.0, made.high))


def _renormalised(config: Config) -> bool:
    return experts_of(config).renormalised


ROUTING = (
    Recipe("float32", "in float32", partial(_routing, way="float32")),
    Recipe(
        "stored",
        "in float32, cast to {half} before the sum of the chosen",
        partial(_routing, way="stored"),
        _renormalised,
    ),
    Recipe("steps", "with every step stored in {half}", partial(_routing, way="steps")),
)


def _gate(read: Read, gate: Span, up: Span, stepwise: bool) -> Span:
    """act(gate) · up, of which the first factor is stored, or everything in one kernel."""
    kind, p = read.config.keys.activation, read.declared
    if kind != "swish_clamped":
        found = GATES[kind][0](gate, read)
        return (found.store(p) if stepwise else found.loose(1)) * up

    def kept(x: Span) -> Span:
        return x.store(p) if stepwise else x

    gate = gate.each(lambda x: np.minimum(x, CLAMP))
    up = up.each(lambda x: np.clip(x, -CLAMP, CLAMP))
    slope = kept(sigmoid(kept(gate * constant(CLAMPED_SLOPE))))
    return kept(up + constant(1.0)) * kept(gate * slope)


def _expert(read: Read, number: int, rows: Rows, how: Inner) -> Span:
    """What one expert makes of these tokens, stored, [N, D]."""
    one = expert(read.config, read.site, number, read.tensor)
    p = read.declared

    def stored(x: Span, wb: tuple[Array, Array]) -> Span:
        w, bias = wb
        if how.bias_after:
            return (product(x, w).store(p) + exact(bias)).store(p)
        return product(x, w, bias).store(p)

    x = read.input().each(lambda x: x[rows])
    gate, up = stored(x, one.gate), stored(x, one.up)
    return stored(_gate(read, gate, up, how.stepwise).store(p), one.down)


@dataclass(frozen=True)
class Inner:
    """How an expert computes.

    Attributes:
        stepwise: its gate is stored step by step; in one kernel otherwise.
        bias_after: its products are stored before their biases are added.
    """

    stepwise: bool = True
    bias_after: bool = False


Sum = Callable[[Span, Span, Read], Span]


def _in_turn(total_so_far: Span, weighted: Span, read: Read) -> Span:
    return (total_so_far + weighted.store(read.declared)).store(read.declared)


def _once(total_so_far: Span, weighted: Span, read: Read) -> Span:
    return total_so_far + weighted


def _once_of_stored(total_so_far: Span, weighted: Span, read: Read) -> Span:
    return total_so_far + weighted.store(read.declared)


def _mixture(read: Read, add: Sum, how: Inner) -> Span:
    """Σ weight · expert, from the first expert to the last."""
    weights_TE: Array = read.input(1).mid
    zero = np.zeros((len(weights_TE), read.site.width))
    made = exact(zero)
    for e in range(weights_TE.shape[-1]):
        rows = np.flatnonzero(weights_TE[:, e])
        if len(rows):
            weighted = _expert(read, e, rows, how) * exact(weights_TE[rows, e, None])
            before = made.each(lambda x, rows=rows: x[rows])  # type: ignore[misc]
            made = _placed(made, add(before, weighted, read), rows)
    return made


def _placed(whole: Span, some: Span, rows: Rows) -> Span:
    def put(x: Array, y: Array) -> Array:
        made = x.copy()
        made[rows] = y
        return made

    return Span(put(whole.low, some.low), put(whole.mid, some.mid), put(whole.high, some.high))


_SUMS: tuple[tuple[str, str, Sum, str], ...] = (
    ("in-turn", "are weighted, stored and added in turn", _in_turn, ""),
    ("once", "are weighted and added in float32", _once, ""),
    ("once-of-stored", "are weighted and stored, and added in float32", _once_of_stored, "in-turn"),
)


def _biased(config: Config) -> bool:
    return config.keys.bias_mlp


def _any(config: Config) -> bool:
    return True


EXPERTS = tuple(
    Recipe(
        f"{before}{name}{after}",
        f"{gates}{words}{biases}",
        partial(_mixture, add=add, how=Inner(stepwise=not before, bias_after=bool(after))),
        of=_biased if after else _any,
        plain=plain and f"{before}{plain}{after}",
    )
    for after, biases in (("", ""), ("-bias-after", ", of products cast before their bias"))
    for before, gates in (("", ""), ("fused-", "have gates in float32, "))
    for name, words, add, plain in _SUMS
)
