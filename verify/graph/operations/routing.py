"""How much each expert counts for each token."""

from __future__ import annotations

import numpy as np

from gpt_verify.graph.back import Array, Back, Step
from gpt_verify.graph.call import Call
from gpt_verify.graph.operation import At, Operation
from gpt_verify.graph.operations.pattern import softmax_back, softmax_rounding
from gpt_verify.numerics.budgets import Measured, measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference import experts, ops
from gpt_verify.reference.architecture import Experts
from gpt_verify.reference.config import Config


def experts_of(config: Config) -> Experts:
    assert config.keys.experts is not None, "a model of experts"
    return config.keys.experts


def value(call: Call) -> Array:
    return experts.routing(call.x, experts_of(call.config))


def rounding(p: Precision, router: Measured, kind: Experts) -> Measured:
    """A softmax; over all and divided by what the chosen have of it, or over the chosen alone.

    A token whose last chosen and first left out are equal, or apart by less than their budgets,
    may be given to either: whatever its weights are, they lie between 0 and 1, and that is all that
    is known of them.
    """
    value_TE = experts.routing(router.value, kind)
    chosen_TE = experts.chosen(router.value, kind.chosen)
    whole_TE = value_TE if kind.renormalised else ops.softmax(router.value)
    counts_TE = chosen_TE if kind.renormalised else np.ones(chosen_TE.shape, np.bool_)
    found = softmax_rounding(p, router, counts_TE, whole_TE)
    assert found.budget is not None, "an operation's result has a budget"
    # The softmax is over a row of E; what it is divided by is a sum, and a quotient is stored.
    more2 = (kind.count + 2) * p.u_sum**2 + p.u**2
    budget_TE = np.sqrt(found.budget**2 + more2 * value_TE**2)
    budget_TE = np.where(chosen_TE, budget_TE, p.tiny)
    budget_TE = np.where(undecided(router, kind)[:, None], 1.0, budget_TE)
    return measured(p, value_TE, budget_TE**2)


def undecided(router: Measured, kind: Experts) -> Array:
    """Tokens that may be given to either of two experts, bool[T]."""
    if kind.chosen == kind.count:
        return np.zeros(len(router.value), bool)
    order_TE = np.argsort(-router.value, axis=-1, kind="stable")
    ends = order_TE[:, kind.chosen - 1 : kind.chosen + 1]
    last, first = np.take_along_axis(router.value, ends, axis=-1).T
    if router.budget is None:
        return np.asarray(last == first)
    errors = np.take_along_axis(np.broadcast_to(router.budget, router.value.shape), ends, axis=-1)
    return np.asarray(last - first <= errors.sum(axis=-1))


def back(step: Step, d_TE: Array) -> Back:
    kind = experts_of(step.config)
    if kind.renormalised:
        return Back((softmax_back(step.value, d_TE),))
    d_TE = np.where(experts.chosen(step.x, kind.chosen), d_TE, 0)
    return Back((softmax_back(ops.softmax(step.x), d_TE),))


def budget(p: Precision, at: At) -> Measured:
    return rounding(p, at.input(0), experts_of(at.config))


OPERATION = Operation(value, budget, back)
