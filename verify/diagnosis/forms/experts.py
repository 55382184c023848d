"""Experts whose outputs are added with other weights, or whose biases are.

Fitted is, for each token, how much each expert's product counts in the sum, and how much its bias
does. A token has many more channels than experts, which is what makes these numbers more than a
guess; where they are the router's own in another order, that order is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, listed, said
from gpt_verify.graph.call import Call
from gpt_verify.graph.operations.experts import Expert, expert

#: Channels for each number that is read off a token.
ROOM = 2
#: Weights nearer to each other than this are the same.
ALIKE = 1e-4


def fits(e: Evidence) -> Iterator[Fitted]:
    kind = e.config.keys.experts
    if e.site.operation != "experts" or kind is None or not np.isfinite(e.got).all():
        return
    weights_TE, biased = e.call.values[e.site.inputs[1]], e.config.keys.bias_mlp
    count = weights_TE.shape[1]
    if count * (1 + biased) * ROOM > e.got.shape[1]:
        return
    terms_TND = _terms(e.call, count, biased)
    read = np.stack(
        [
            np.linalg.lstsq(terms_ND.T, got_D, rcond=None)[0]
            for terms_ND, got_D in zip(terms_TND, e.got, strict=True)
        ]
    )
    used_TE, of_bias_TE = read[:, :count], read[:, count:] if biased else read[:, :0]
    order = _order(used_TE, weights_TE)
    if order != list(range(count)):
        words = f"expert {listed(order)} is run for expert {listed(range(count))}"
        yield e.alone(partial(_summed, _Reordered(tuple(order))), words)
    if np.abs(used_TE - _exchanged(weights_TE)).max() <= ALIKE:
        words = "the weights of the chosen experts are exchanged: the largest counts least"
        yield e.alone(partial(_summed, _exchanged), words)
    if biased and np.abs(used_TE - weights_TE).max() <= ALIKE:
        chosen = (weights_TE != 0).astype(float)
        for said_of, bias_TE in (
            ("of the chosen experts are added without their weights", chosen),
            ("of the experts are left out", np.zeros_like(chosen)),
            ("of all experts are added", np.ones_like(chosen)),
        ):
            if np.abs(of_bias_TE - bias_TE).max() <= ALIKE:
                yield e.alone(partial(_with_biases, bias_TE), f"the biases {said_of}")
    token = int(np.argmax(np.abs(used_TE - weights_TE).max(axis=1)))
    words = f"the experts count as {listed(map(said, used_TE[token]))} for the token at {token}, "
    words += f"should be {listed(map(said, weights_TE[token]))}"
    yield e.alone(partial(_as_read, read), words)


def _experts(call: Call, count: int) -> Iterator[Expert]:
    for number in range(count):
        yield expert(call.config, call.site, number, call.own)


def _terms(call: Call, count: int, biased: bool) -> Array:
    """What each expert makes without its last bias, then those biases: [T, N, D]."""
    experts = list(_experts(call, count))
    made = [one.inner(call.x) @ one.down[0] for one in experts]
    if biased:
        made += [np.broadcast_to(one.down[1], made[0].shape) for one in experts]
    return np.stack(made, axis=1)


def _order(used_TE: Array, weights_TE: Array) -> list[int]:
    """Whose product is weighted by each of the router's numbers."""
    apart = np.sum((used_TE[:, :, None] - weights_TE[:, None]) ** 2, axis=0)
    return [int(i) for i in np.argmin(apart, axis=0)]


def _exchanged(weights_TE: Array) -> Array:
    """The largest weight for the expert that has the smallest, and so on."""
    made = np.zeros_like(weights_TE)
    for weights_E, made_E in zip(weights_TE, made, strict=True):
        chosen = np.flatnonzero(weights_E)
        falling = chosen[np.argsort(-weights_E[chosen], kind="stable")]
        made_E[falling] = weights_E[falling[::-1]]
    return made


@dataclass(frozen=True)
class _Reordered:
    """The weights of experts of which another is run for each."""

    order: tuple[int, ...]

    def __call__(self, weights_TE: Array) -> Array:
        made = np.zeros_like(weights_TE)
        for of, number in enumerate(self.order):
            made[:, number] += weights_TE[:, of]
        return made


def _summed(change: Callable[[Array], Array], call: Call) -> Array:
    """With other weights than the router's."""
    used_TE = np.asarray(change(call.values[call.site.inputs[1]]), call.dtype)
    made_TD = np.zeros_like(call.x)
    for i, one in enumerate(_experts(call, used_TE.shape[1])):
        made_TD += used_TE[:, [i]] * one(call.x)
    return made_TD


def _with_biases(bias_TE: NDArray[np.floating], call: Call) -> Array:
    weights_TE = call.values[call.site.inputs[1]]
    return _as_read(np.concatenate([weights_TE, bias_TE], axis=1), call)


def _as_read(read_TN: Array, call: Call) -> Array:
    count = call.values[call.site.inputs[1]].shape[1]
    terms_TND = _terms(call, count, read_TN.shape[1] > count)
    made: Array = np.einsum("tn,tnd->td", read_TN.astype(call.dtype), terms_TND)
    return made


FORM = Form("experts-weighted", "weighs its experts, or their biases, otherwise", fits)
