"""What the oracle says through the lens, and how far a correct port may be from it.

Every state of the stream has a floor, measured and never chosen: the noise of the oracle in the
port's own precision. One measurement is one draw, so a channel's noise counts as no less than its
root mean square over the positions, each in units of the norm that the lens divides by; and the
rounding of the state's own last operation is added. From there on the floor is a budget like any
other (``gpt_verify.numerics.budgets``): it is carried through ln_f and the last product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.cascade import Lockstep
from gpt_verify.graph.operations import layer_norm as op_layer_norm
from gpt_verify.graph.operations import rms_norm as op_rms_norm
from gpt_verify.graph.operations import unembed as op_unembed
from gpt_verify.graph.tiles import vocabulary_tiles
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.lens.states import state_sites
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.architecture import Norm

Floats = NDArray[np.floating]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Oracle:
    """The stream of one sequence.

    Attributes:
        sites: of the states, in order.
        states: each state [T, D], with its floor.
    """

    subject: Subject
    tokens_T: Tokens
    sites: tuple[str, ...]
    states: tuple[Measured, ...]

    @property
    def wte_VD(self) -> Floats:
        """Of an untied model, its head instead."""
        wte_VD: Floats = self.subject.weights[self.subject.config.head]
        return wte_VD

    def norm(self, p: Precision, x: Measured, scope: str = "ln_f") -> Measured:
        """A norm of the model, with the budget of one that is computed in ``p``."""
        kind, weights = self.subject.config.keys.norm, self.subject.weights
        gain_D = weights.float64(f"{scope}/g")
        if kind.rms:
            return op_rms_norm.rounding(p, x, gain_D, kind)
        return op_layer_norm.rounding(p, x, gain_D, weights.float64(f"{scope}/b"), kind.epsilon)

    def plain(self, p: Precision, x: Measured) -> Measured:
        """The same without a gain and a bias."""
        kind, width = self.subject.config.keys.norm, x.value.shape[-1]
        if kind.rms:
            return op_rms_norm.rounding(p, x, np.ones(width), replace(kind, plus_one=False))
        return op_layer_norm.rounding(p, x, np.ones(width), np.zeros(width), kind.epsilon)

    @property
    def head(self) -> op_unembed.Head:
        """The last product, with its bias and its cap where the model has them."""
        return op_unembed.Head(self.subject.config, self.subject.weights.__getitem__)

    def decoded(self, p: Precision, sites: Sequence[str], at: slice) -> Measured:
        """ln_f of some states at some positions, [N, P, D]."""
        states = (self.states[self.sites.index(site)] for site in sites)
        rows = [self.norm(p, Measured(x.value[at], _budget(x)[at])) for x in states]
        return Measured(np.stack([x.value for x in rows]), np.stack([_budget(x) for x in rows]))


def oracle(subject: Subject, tokens_T: Tokens) -> Oracle:
    """Run the oracle in float64 and in the port's precision, side by side.

    NotExamined where the latter overflows: there is no floor then.
    """
    lockstep = Lockstep(subject.config, subject.weights, subject.precision, tokens_T)
    sites, states = tuple(state_sites(subject.config)), []
    with np.errstate(all="ignore"):
        for site in sites:
            known = lockstep.value(site)
            assert known is not None, "sites are asked for in their order"
            exact_TD, noise_RTD = known
            if not np.isfinite(noise_RTD).all():
                raise NotExamined(f"the reference overflows in {subject.precision.name}")
            floor_TD = _floor(exact_TD, noise_RTD, subject.precision, subject.config.keys.norm)
            states.append(Measured(exact_TD, floor_TD))
    return Oracle(subject, tokens_T, sites, tuple(states))


def _floor(exact_TD: Floats, noise_RTD: Floats, p: Precision, norm: Norm) -> Floats:
    noise2_TD = np.mean(noise_RTD**2, axis=0)
    squares_T1 = np.mean(exact_TD**2, axis=-1, keepdims=True)
    spread_T1 = squares_T1 if norm.rms else np.var(exact_TD, axis=-1, keepdims=True)
    scale_T1 = np.sqrt(spread_T1 + norm.epsilon)
    channel_D = np.mean(noise2_TD / scale_T1**2, axis=0)
    squares_TD = np.maximum(noise2_TD, channel_D * scale_T1**2)
    floor_TD: Floats = np.maximum(np.sqrt(squares_TD + (p.u * exact_TD) ** 2), p.tiny)
    return floor_TD


def unembedded(
    p: Precision,
    decoded: Measured,
    head: op_unembed.Head,
    n_vocab: int,
    other_NPD: Floats | None = None,
) -> tuple[Floats, Floats, Floats | None]:
    """Exact logits [N, P, V] of decoded states, their budgets, and the logits of other ones."""
    n, positions, d = decoded.value.shape
    exact_NPV = np.empty((n, positions, n_vocab))
    budget_NPV = np.empty(exact_NPV.shape, np.float32)
    other_NPV = None if other_NPD is None else np.empty(exact_NPV.shape)
    flat = Measured(decoded.value.reshape(-1, d), _budget(decoded).reshape(-1, d))
    for rows in vocabulary_tiles(n * positions, n_vocab):
        tile = head.rounding(p, flat, rows)
        exact_NPV[..., rows] = tile.value.reshape(n, positions, -1)
        budget_NPV[..., rows] = _budget(tile).reshape(n, positions, -1)
        if other_NPD is not None and other_NPV is not None:
            other = head.logits(other_NPD.reshape(-1, d), rows)
            other_NPV[..., rows] = other.reshape(n, positions, -1)
    return exact_NPV, budget_NPV, other_NPV


def _budget(value: Measured) -> Floats:
    assert value.budget is not None, "what is carried through operations has a budget"
    return value.budget
