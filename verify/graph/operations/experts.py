"""The weighted sum of what the chosen experts make of a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt_verify.graph.back import Array, Back, Pulled, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.directions import Direction
from gpt_verify.graph.operation import At, Operation
from gpt_verify.graph.operations import glu, linear
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.activations import gated
from gpt_verify.reference.config import Config
from gpt_verify.reference.experts import mixture
from gpt_verify.sites import Site

_PARTS = ("gate", "up", "down")


@dataclass(frozen=True)
class Expert:
    """One MLP: ``(w, b)`` of its three products; b is zero where there is none.

    Attributes:
        config: sizes.
        gate, up, down: as above.
    """

    config: Config
    gate: tuple[Array, Array]
    up: tuple[Array, Array]
    down: tuple[Array, Array]

    def halves(self, x_ND: Array) -> tuple[Array, Array]:
        (gate, gate_b), (up, up_b) = self.gate, self.up
        return x_ND @ gate + gate_b, x_ND @ up + up_b

    def inner(self, x_ND: Array) -> Array:
        return gated(self.config.keys.activation, *self.halves(x_ND))

    def __call__(self, x_ND: Array) -> Array:
        w, b = self.down
        made: Array = self.inner(x_ND) @ w + b
        return made

    def rounding(self, p: Precision, x: Measured) -> Measured:
        gate, up = (linear.rounding(p, x, w, b) for w, b in (self.gate, self.up))
        act = glu.rounding(p, self.config.keys.activation, gate, up)
        return linear.rounding(p, act, *self.down)


def expert(config: Config, site: Site, number: int, own: Callable[[int], Array]) -> Expert:
    """One expert, from the tensors that the operation reads, by their places.

    Args:
        config: sizes.
        site: the site that all experts make.
        number: which expert, from 0.
        own: place among the site's tensors → the tensor.
    """
    each = 2 if config.keys.bias_mlp else 1

    def product(part: int) -> tuple[Array, Array]:
        first = (number * len(_PARTS) + part) * each
        w = own(first)
        return w, own(first + 1) if each == 2 else np.zeros(1, w.dtype)

    return Expert(config, product(0), product(1), product(2))


def value(call: Call) -> Array:
    weights_NE = call.values[call.site.inputs[1]]

    def one(e: int, rows_ND: Array) -> Array:
        return expert(call.config, call.site, e, call.own)(rows_ND)

    return mixture(call.x, weights_NE, one)


def budget(p: Precision, at: At) -> Measured:
    """Each expert's own, its weight's, the product, and the sum over the chosen: as for a sum of
    products (``linear``), each partial sum may be stored."""
    x, weights = at.input(0), at.input(1)
    value_TD, variance_TD = np.zeros_like(x.value), np.zeros_like(x.value)
    terms2_TD = np.zeros_like(x.value)
    error_TE = np.zeros_like(weights.value) if weights.budget is None else weights.budget
    for e in range(weights.value.shape[-1]):
        rows = np.flatnonzero((weights.value[:, e] != 0) | (error_TE[:, e] > p.tiny))
        if not len(rows):
            continue
        own = None if x.budget is None else x.budget[rows]
        made = expert(at.config, at.site, e, at.wide).rounding(p, Measured(x.value[rows], own))
        assert made.budget is not None, "an operation's result has a budget"
        weight = weights.value[rows, e, None]
        value_TD[rows] += weight * made.value
        terms2_TD[rows] += (weight * made.value) ** 2
        variance_TD[rows] += (weight * made.budget) ** 2
        variance_TD[rows] += (error_TE[rows, e, None] * made.value) ** 2
    chosen = at.config.keys.experts.chosen if at.config.keys.experts else 1
    variance_TD += p.u**2 * (terms2_TD + chosen * (terms2_TD + value_TD**2))
    return measured(p, value_TD, variance_TD)


def back(step: Step, d_TD: Array) -> Back:
    x_TD, weights_TE = (step.values[name] for name in step.site.inputs)
    x_back, weights_back = np.zeros_like(x_TD), np.zeros_like(weights_TE)
    pulled: list[Pulled] = []
    for e in range(weights_TE.shape[-1]):
        one, rows = expert(step.config, step.site, e, step.own), np.flatnonzero(weights_TE[:, e])
        x_ND, d_ND = x_TD[rows], d_TD[rows]
        gate, up = one.halves(x_ND)
        act = gated(step.config.keys.activation, gate, up)
        weights_back[rows, e] = np.sum(d_ND * (act @ one.down[0] + one.down[1]), axis=-1)
        d_out = d_ND * weights_TE[rows, e, None]
        d_act = d_out @ one.down[0].T
        by_gate, by_up = glu.slopes(step.config.keys.activation, gate, up)
        d_gate, d_up = d_act * by_gate, d_act * by_up
        x_back[rows] += d_gate @ one.gate[0].T + d_up @ one.up[0].T
        for read, d in ((x_ND, d_gate), (x_ND, d_up), (act, d_out)):
            pulled += [Pulled(read, d), Pulled(None, d)][: 2 if step.config.keys.bias_mlp else 1]
    return Back((x_back, weights_back), tuple(pulled))


def effect(call: Call, direction: Direction) -> Array:
    """The effect is one of first order: an expert is not linear in its first two matrices."""
    each = 2 if call.config.keys.bias_mlp else 1
    e, place = divmod(call.site.weights.index(direction.tensor), len(_PARTS) * each)
    part = _PARTS[place // each]
    weights_NE, found_ND = call.values[call.site.inputs[1]], np.zeros_like(call.x)
    rows = np.flatnonzero(weights_NE[:, e])
    x_ND, one = call.x[rows], expert(call.config, call.site, e, call.own)
    gate, up = one.halves(x_ND)
    read = one.inner(x_ND) if part == "down" else x_ND
    if direction.left is None:
        moved = np.broadcast_to(direction.right, (len(rows), direction.right.size))
    else:
        moved = (read @ direction.left)[:, None] * direction.right
    if part != "down":
        by_gate, by_up = glu.slopes(call.config.keys.activation, gate, up)
        moved = (moved * (by_gate if part == "gate" else by_up)) @ one.down[0]
    found_ND[rows] = weights_NE[rows, e, None] * moved
    return found_ND


OPERATION = Operation(value, budget, back, effect, bridged=False)
