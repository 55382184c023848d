"""Rows of logits become the statistics of the lens, in passes over what fits the cache.

A slab x[P, N, V] holds the logits of N states at P positions, the first state first and the last
one last. In place, it becomes y = x − max(x); with q = exp(y)/Z, and p and r the q of the last and
the first state, everything that is wanted is one of a few sums over V:

    entropy          ln Z_q − Σ q y_q
    KL(p ‖ q)        ln Z_q − ln Z_p − Σ p y_q + Σ p y_p
    KL(q ‖ p)        ln Z_p − ln Z_q − Σ q y_p + Σ q y_q
    KL(r ‖ q)        ln Z_q − ln Z_r − Σ r y_q + Σ r y_r
    total variation  1 − Σ min(p, q)
    Jensen–Shannon   ln 2 − (H(p) + H(q) + Σ (p + q) ln(p + q)) / 2

What cancels is as large as an entropy, and the error is some tens of units of rounding, absolute.
That is too much where the distance itself is so small, more so for a square root. Pairs that turn
out to be near (``NEAR_NATS``) are therefore measured once more, in float64, from the same logits,
by forms in which every term is small by itself (``gpt_verify.lens.near``). A state is at distance 0
from itself.

Ranks and the top k are those of y, which is x rounded once more where its maximum is subtracted.
Sums are kept in float64 over segments of a few thousand products. Functions that NumPy and torch
spell alike are called by their common name; what they spell differently is in ``Arrays``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_verify.lens.near import Distances, distances
from gpt_verify.lens.statistics import UNDEFINED

#: An array of NumPy, or a tensor of torch.
Array = Any
#: Name → [P, N], or [P, N, k].
Measured = dict[str, NDArray[Any]]

#: A pair whose divergence (Jensen–Shannon to the last state, KL from the first one) is below this
#: is near. The first pass errs by some tens of units, 2⁻¹⁹ in float32. At this divergence that is
#: 2⁻¹⁶ in its root, which is what logits of size 100 are uncertain by when they are rounded once.
NEAR_NATS = 2.0**-8
#: What p is raised to before p + q has its logarithm taken, which must not be −inf.
_TINY = 1e-37
#: Sums over V: of products of two rows, where names are those of the table above; and the others.
_SUMS = ("z", "qy", "py", "ry", "qy_p", "overlap", "slogs")
_RANKS = ("rank_final_top1", "rank_input", "rank_next")
#: Statistics that compare with the last and with the first state → field of ``Distances``.
_TO_FINAL = {
    "kl_final_layer_nats": "kl_ab",
    "kl_layer_final_nats": "kl_ba",
    "js_distance": "js",
    "total_variation": "total_variation",
}
_TO_INPUT = {"kl_input_layer_nats": "kl_ab"}


class Arrays(Protocol):
    """The part that differs between engines. Rows are padded to a length that suits the engine."""

    xp: Any
    n_vocab: int
    #: The least number of the engine's dtype.
    lowest: float

    def scratch(self, positions: int, rows: int) -> Array:
        """Rows to work in, of the engine's dtype, [P, rows, V]."""

    def zeros(self, *shape: int) -> Array:
        """Make zeros in float64."""

    def narrow(self, a: Array) -> Array:
        """Convert to the engine's dtype."""

    def wide(self, a: Array) -> Array:
        """Convert to float64."""

    def host(self, a: Array) -> NDArray[Any]:
        """Convert to NumPy."""

    def room(self, sums: int, positions: int, states: int) -> Array:
        """Make room for sums over V, [sums, P, N, …]: each may be kept as those of parts of the
        row."""

    def dot(self, a_PnV: Array, b_PnV: Array, out_Pn: Array) -> None:
        """Σ a b over V, into room."""

    def total(self, a_PnV: Array, out_Pn: Array) -> None:
        """Σ a over V, into room."""

    def summed(self, room: Array) -> Array:
        """The sums that were put into room, in float64."""

    def argmax(self, y_PV: Array) -> Array:
        """The smallest id of each row's maximum, [P]."""

    def take(self, y_PnV: Array, ids_Pi: Array) -> Array:
        """The logits of some tokens, others at each position, [P, n, i]."""

    def above(self, y_PnV: Array, own_Pn1: Array, out_Pn: Array) -> None:
        """How many tokens have a strictly larger logit."""

    def notes(self, positions: int, states: int) -> Array:
        """Room for what ``largest`` lets ``top`` know of each row, [P, N, …]."""

    def largest(self, x_PnV: Array, notes_Pn: Array) -> Array:
        """The maximum of each row, [P, n, 1]."""

    def top(
        self, y_PNV: Array, notes_PN: Array, k: int
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """Ids of the k largest, equal ones by id, and their y in float64, [P, N, k]."""


class Rows:
    """Measures blocks of logits, and holds the rows that one slab after another works in.

    Args:
        arrays: the engine's functions.
        slab: how many positions are worked on at a time.
        group: how many of their states: as many as fit the cache.
        k: how many of the most probable tokens are listed.
    """

    def __init__(self, arrays: Arrays, slab: int, group: int, k: int) -> None:
        self._arrays, self._slab, self._group = arrays, slab, group
        self._k = min(k, arrays.n_vocab)
        self._scratch: Array | None = None

    def measure(self, x_PNV: Array, tokens_P: Array, next_P: Array) -> Measured:
        """Every statistic of a block by its name, and ``top_ids`` and ``top_probabilities``.

        Args:
            x_PNV: logits, padded with −inf; overwritten.
            tokens_P: the token read at each position.
            next_P: the one that follows; any token where there is none.
        """
        arrays = self._arrays
        positions, states, _width = x_PNV.shape
        own = {name: arrays.zeros(positions, states) for name in ("y_next", *_RANKS)}
        room = arrays.room(len(_SUMS), positions, states)
        notes = arrays.notes(positions, states)
        for start in range(0, positions, self._slab):
            at = slice(start, start + self._slab)
            sums = dict(zip(_SUMS, room[:, at], strict=True))
            part = {name: values_PN[at] for name, values_PN in own.items()}
            self._sum(x_PNV[at], tokens_P[at], next_P[at], sums, part, notes[at])
        found = {name: arrays.host(values_PN) for name, values_PN in own.items()}
        found |= dict(zip(_SUMS, arrays.host(arrays.summed(room)), strict=True))
        found["log_z"] = np.log(found["z"])
        top_ids, top_y = arrays.top(x_PNV, notes, self._k)
        measured = _statistics(found)
        measured["top_ids"] = top_ids
        measured["top_probabilities"] = np.exp(top_y - found["log_z"][..., None])
        self._measure_near(x_PNV, measured)
        measured["js_distance"] = np.sqrt(measured["js_distance"])
        _undefine(measured, np.isfinite(found["qy"]))
        return measured

    def _sum(
        self,
        x: Array,
        tokens_P: Array,
        next_P: Array,
        sums: dict[str, Array],
        own: dict[str, Array],
        notes: Array,
    ) -> None:
        """All sums over V of one slab; x becomes y."""
        arrays, xp = self._arrays, self._arrays.xp
        positions, states = x.shape[:2]
        final = slice(states - 1, states)

        # The two that all others are compared with come first, and their probabilities are kept.
        group = min(self._group, max(1, states - 2))
        rows = self._rows(positions, 3 + 2 * group)
        kept = {final.start: rows[:, 0:1], 0: rows[:, 1:2]} if states > 1 else {0: rows[:, 0:1]}
        for start, q in kept.items():
            self._normalise(x, slice(start, start + 1), q, sums["z"], notes)
        p, y_p, r, floor = kept[final.start], x[:, final], kept[0], rows[:, 2:3]
        xp.clip(p, _TINY, None, out=floor)
        ids_P3 = xp.stack((arrays.argmax(y_p[:, 0]), tokens_P, next_P), -1)
        for at in _groups(states, group):
            y = x[:, at]
            q, scratch = (rows[:, i : i + y.shape[1]] for i in (3, 3 + group))
            if at.start in kept:
                q[...] = kept[at.start]
            else:
                self._normalise(x, at, q, sums["z"], notes)
            own_Pn3 = arrays.take(y, ids_P3)
            for i, name in enumerate(_RANKS):
                arrays.above(y, own_Pn3[..., i : i + 1], own[name][:, at])
            own["y_next"][:, at] = own_Pn3[..., 2]
            for name, a, b in (("qy", q, y), ("py", y, p), ("ry", y, r), ("qy_p", q, y_p)):
                arrays.dot(a, b, sums[name][:, at])
            xp.minimum(q, p, out=scratch)
            arrays.total(scratch, sums["overlap"][:, at])
            xp.add(q, floor, out=q)
            xp.log(q, out=scratch)
            arrays.dot(q, scratch, sums["slogs"][:, at])

    def _normalise(self, x: Array, at: slice, q: Array, z: Array, notes: Array) -> None:
        """Some states' x becomes y, and q their probabilities."""
        arrays, xp = self._arrays, self._arrays.xp
        y = x[:, at]
        largest = arrays.largest(y, notes[:, at])
        xp.subtract(y, largest, out=y)
        # Finite, so that a difference of two is 0, and a product with a probability of 0 too.
        y[..., arrays.n_vocab :] = arrays.lowest
        xp.exp(y, out=q)
        arrays.total(q, z[:, at])
        xp.multiply(q, arrays.narrow(1.0 / arrays.summed(z[:, at]))[..., None], out=q)

    def _measure_near(self, y: Array, measured: Measured) -> None:
        """Replace what is said of near pairs; ``js_distance`` is still a divergence here."""
        final = y.shape[1] - 1
        for other, by, fields in (
            (final, "js_distance", _TO_FINAL),
            (0, "kl_input_layer_nats", _TO_INPUT),
        ):
            near_PN = measured[by] < NEAR_NATS
            near_PN[:, other] = False
            pairs = np.argwhere(near_PN)
            for start in range(0, len(pairs), self._group):
                at_P, at_N = pairs[start : start + self._group].T
                exact = self._distances(y, at_P, at_N, other)
                for name, of in fields.items():
                    measured[name][at_P, at_N] = self._arrays.host(getattr(exact, of))
            for name in fields:
                measured[name][:, other] = 0.0

    def _distances(
        self, y: Array, at_P: NDArray[np.integer], at_N: NDArray[np.integer], other: int
    ) -> Distances:
        """The distances from state ``other`` to some states, in float64."""
        y = y[..., : self._arrays.n_vocab]
        a_MV, b_MV = (self._arrays.wide(y[at_P, n]) for n in (other, at_N))
        return distances(self._arrays.xp, a_MV, b_MV)

    def _rows(self, positions: int, count: int) -> Array:
        """Rows to work in, made once, and again where they are too few."""
        known = self._scratch
        if known is None or known.shape[0] < positions or known.shape[1] < count:
            known = self._scratch = self._arrays.scratch(positions, count)
        return known[:positions, :count]


def _groups(states: int, size: int) -> Iterator[slice]:
    """The first and the last state by themselves, the others ``size`` at a time."""
    yield slice(0, 1)
    for start in range(1, states - 1, size):
        yield slice(start, min(start + size, states - 1))
    if states > 1:
        yield slice(states - 1, states)


def _statistics(found: dict[str, NDArray[np.float64]]) -> Measured:
    """What the sums mean; the divergence itself stands under ``js_distance``."""
    log_z, qy, py, ry = (found[name] for name in ("log_z", "qy", "py", "ry"))
    entropy = log_z - qy
    beyond_final, beyond_input = log_z - log_z[:, -1:], log_z - log_z[:, :1]
    return {
        **{name: found[name].astype(np.int64) for name in _RANKS},
        "kl_final_layer_nats": beyond_final - (py - py[:, -1:]),
        "kl_input_layer_nats": beyond_input - (ry - ry[:, :1]),
        "kl_layer_final_nats": (qy - found["qy_p"]) - beyond_final,
        "js_distance": math.log(2.0) - (entropy + entropy[:, -1:] + found["slogs"]) / 2,
        "total_variation": 1.0 - found["overlap"],
        "entropy_nats": entropy,
        "loss_nats": log_z - found["y_next"],
    }


def _undefine(measured: Measured, defined_PN: NDArray[np.bool_]) -> None:
    """Nothing is said of a state without a distribution, nor of what refers to it."""
    to_final, to_input = defined_PN & defined_PN[:, -1:], defined_PN & defined_PN[:, :1]
    for name, values in measured.items():
        if name in (*_TO_FINAL, "rank_final_top1"):
            known = to_final
        else:
            known = to_input if name in _TO_INPUT else defined_PN
        values[~known] = UNDEFINED if np.issubdtype(values.dtype, np.integer) else np.nan
