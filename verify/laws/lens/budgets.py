"""How far each statistic of the lens may move when the logits move by at most E.

Nothing is fitted, and nothing is expanded to first order: these are inequalities. Let q' be the
softmax of logits that differ from those of q by δ, |δ| ≤ E for every token, and ω = 2 E the largest
difference of two δ. Natural logarithms; L = ln(p/q).

    |ln q' − ln q| ≤ ω, hence the loss and, relatively, every probability
    KL(q' ‖ q) ≤ ω²/8                                  Hoeffding (1963, lemma 1)
    TV(q', q) ≤ tanh(ω/4) ≤ ω/4
    JS(q', q) ≤ ¼ (KL(q ‖ q') + KL(q' ‖ q)) ≤ ω²/16    convexity; the distance moves by its root
    E_q |ln q + H| ≤ 2 H                               because −ln q ≥ 0 has mean H
    E_p |L − KL| ≤ 2 KL + 2 TV                         Barron (1986): E_p L⁻ ≤ TV

An expectation under p' in place of p, whose ratio lies within e^±ω, moves by no more than (e^ω − 1)
mean absolute deviations. With that,

    |H(q') − H(q)| ≤ (e^ω − 1) 2 H + ω²/8
    |KL(p' ‖ q') − KL(p ‖ q)| ≤ (e^ω_p − 1) (2 KL + 2 TV) + ω_p²/8 + ω_q²/8 + ω_q (TV + ω_p/4)

and TV ≤ √(KL/2) (Pinsker) where the total variation itself is not at hand. A distance that obeys
the triangle inequality moves by no more than both of its ends together.

A rank may be anything that the tokens allow whose logit is within 2 E of the token's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference import lens as definitions
from gpt_verify.reference.loss import log_softmax

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

#: Roundings of NumPy's sum of V terms besides log₂ V: it adds up blocks of 128 in eight sums.
_BLOCK_ROUNDINGS = 16
#: Of ω, so that its exponential is finite; nothing is excluded there any more.
_LARGEST = 300.0


@dataclass(frozen=True)
class Judged:
    """One statistic of a port's lens, the exact one, and where that of a correct port lies.

    Attributes:
        got, exact, low, high: [N, P], or [N, P, k].
    """

    got: Floats | Ints
    exact: Floats | Ints
    low: Floats | Ints
    high: Floats | Ints

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """What is not a number is wrong as well."""
        return np.asarray(~((self.got >= self.low) & (self.got <= self.high)))

    @property
    def excess(self) -> Floats:
        """|got − exact| in budgets; where there is no budget, any difference is infinite."""
        room = np.where(self.got > self.exact, self.high - self.exact, self.exact - self.low)
        with np.errstate(all="ignore"):
            ratio = np.abs(np.asarray(self.got, np.float64) - self.exact) / room
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        return np.where(self.got == self.exact, 0.0, ratio)


@dataclass(frozen=True)
class Block:
    """The exact lens of N states at P positions.

    Attributes:
        y_NPV: exact logits, the first state first and the last one last.
        within_NP: E, by which a correct port's logits may differ.
        tokens_P: what was read.
        next_P: what follows; one token fewer where these are the last positions.
    """

    y_NPV: Floats
    within_NP: Floats
    tokens_P: Ints
    next_P: Ints

    def judged(self, got: Mapping[str, NDArray[Any]]) -> dict[str, Judged]:
        """Every statistic. Among nearly equal tokens the port may have put another one on top
        than the oracle, and is then judged by that one's rank."""
        after = len(self.next_P)
        found = self._divergences(got, after)
        chosen_P = np.maximum(got["top_ids"][-1, :, 0], 0)
        top_P = definitions.top(self.y_NPV[-1], 1)[:, 0]
        for name, exact_P, token_P in (
            ("rank_final_top1", top_P, chosen_P),
            ("rank_input", self.tokens_P, self.tokens_P),
            ("rank_next", self.next_P, self.next_P),
        ):
            if len(token_P):
                found[name] = self._rank(got[name][:, : len(token_P)], exact_P, token_P)
        return found | self._top(got["top_ids"], got["top_probabilities"])

    def _divergences(self, got: Mapping[str, NDArray[Any]], after: int) -> dict[str, Judged]:
        """What is measured in nats, and the distances."""
        log_p, log_r = log_softmax(self.y_NPV[-1]), log_softmax(self.y_NPV[0])
        rows: dict[str, list[Floats]] = {}
        for y_PV in self.y_NPV:
            log_q = log_softmax(y_PV)
            own_P = np.take_along_axis(log_q[:after], self.next_P[:, None], axis=-1)[:, 0]
            for name, value_P in {
                "kl_final_layer_nats": definitions.kl_nats(log_p, log_q),
                "kl_input_layer_nats": definitions.kl_nats(log_r, log_q),
                "kl_layer_final_nats": definitions.kl_nats(log_q, log_p),
                "js_distance": definitions.js_distance(log_p, log_q),
                "total_variation": definitions.total_variation(log_p, log_q),
                "entropy_nats": definitions.entropy_nats(log_q),
                "loss_nats": -own_P,
            }.items():
                rows.setdefault(name, []).append(value_P)
        exact = {name: np.stack(values) for name, values in rows.items()}
        moves, own = self._moves(exact), self._own_rounding()
        found = {}
        for name, value in exact.items():
            count = value.shape[-1]
            move = moves[name][:, :count] + (np.sqrt(own) if name == "js_distance" else own)
            if count:
                found[name] = Judged(got[name][:, :count], value, value - move, value + move)
        return found

    def _moves(self, exact: dict[str, Floats]) -> dict[str, Floats]:
        """The inequalities above."""
        q = np.minimum(2.0 * self.within_NP, _LARGEST)
        p, r = q[-1:], q[:1]
        tv, kl_input = exact["total_variation"], np.maximum(exact["kl_input_layer_nats"], 0.0)
        entropy = exact["entropy_nats"]
        tv_input = np.minimum(np.sqrt(kl_input / 2.0), 1.0)
        distance = (p + q) / 4.0
        return {
            "kl_final_layer_nats": _kl(exact["kl_final_layer_nats"], tv, p, q),
            "kl_layer_final_nats": _kl(exact["kl_layer_final_nats"], tv, q, p),
            "kl_input_layer_nats": _kl(kl_input, tv_input, r, q),
            "js_distance": distance,
            "total_variation": distance,
            "entropy_nats": np.expm1(q) * 2.0 * np.maximum(entropy, 0.0) + q**2 / 8.0,
            "loss_nats": q,
        }

    def _own_rounding(self) -> float:
        """What float64 does to a mean of log-probabilities of either side: four of them, each a
        difference of logits and the logarithm of a sum."""
        size = float(np.ptp(self.y_NPV, axis=-1).max()) + np.log(self.y_NPV.shape[-1])
        roundings = np.log2(self.y_NPV.shape[-1]) + _BLOCK_ROUNDINGS
        return float(4.0 * 2.0**-53 * (2.0 * size + roundings * (1.0 + size)))

    def _rank(self, got_NP: Ints, exact_P: Ints, token_P: Ints) -> Judged:
        rows = []
        count = len(token_P)
        for y_PV, within_P in zip(self.y_NPV[:, :count], self.within_NP[:, :count], strict=True):
            own_P1 = np.take_along_axis(y_PV, token_P[:, None], axis=-1)
            apart_P1 = 2.0 * within_P[:, None]
            low_P = np.sum(y_PV > own_P1 + apart_P1, axis=-1)
            high_P = np.sum(y_PV >= own_P1 - apart_P1, axis=-1) - 1
            rows.append((definitions.rank(y_PV, exact_P), low_P, high_P))
        exact, low, high = (np.stack(part) for part in zip(*rows, strict=True))
        return Judged(got_NP, exact, low, high)

    def _top(self, ids_NPk: Ints, got_NPk: Floats) -> dict[str, Judged]:
        """The j-th token's logit is no further than 2 E below the j-th largest one.

        ``top_ids`` stands for the j-th largest logit, which names no token where two are equal.
        """
        k = ids_NPk.shape[-1]
        best_NPk = -np.sort(-np.partition(self.y_NPV, -k, axis=-1)[..., -k:], axis=-1)
        y_NPk = np.take_along_axis(self.y_NPV, np.maximum(ids_NPk, 0), axis=-1)
        apart_NP1 = np.minimum(2.0 * self.within_NP[..., None], _LARGEST)
        largest_NP1 = best_NPk[..., :1]
        total_NP1 = np.sum(np.exp(self.y_NPV - largest_NP1), axis=-1, keepdims=True)
        q_NPk = np.exp(y_NPk - largest_NP1) / total_NP1
        move_NPk = q_NPk * np.expm1(apart_NP1) + self._own_rounding()
        return {
            "top_ids": Judged(y_NPk, best_NPk, best_NPk - apart_NP1, best_NPk + apart_NP1),
            "top_probabilities": Judged(got_NPk, q_NPk, q_NPk - move_NPk, q_NPk + move_NPk),
        }


def _kl(kl: Floats, tv: Floats, w_p: Floats, w_q: Floats) -> Floats:
    moved = np.expm1(w_p) * 2.0 * (np.maximum(kl, 0.0) + tv)
    rest: Floats = w_p**2 / 8.0 + w_q**2 / 8.0 + w_q * (tv + w_p / 4.0)
    return moved + rest
