"""What goes wrong in a lens, as other ways in which the oracle can decode its own states.

A mistake is named where decoding with it leads to what the port says, within the same floors. A
sample of positions and of the vocabulary is enough: every one of them moves all logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.operations import unembed as op_unembed
from gpt_verify.laws.explain import explain
from gpt_verify.laws.lens.oracle import Oracle
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.reference.weights import tensor_table
from gpt_verify.sites import sites

Floats = NDArray[np.floating]

#: How many tokens of the vocabulary, and how many positions, are looked at.
SAMPLE, POSITIONS = 256, 12


def sampled(n_vocab: int) -> NDArray[np.int64]:
    """Ids, evenly spread."""
    return np.unique(np.linspace(0, n_vocab - 1, min(SAMPLE, n_vocab)).astype(np.int64))


@dataclass(frozen=True)
class _Decoded:
    """Logits of the sampled tokens that a mistake leads to."""

    description: str
    logits: Measured
    fault: str = ""

    def fits(self, got_PS: Floats) -> float | None:
        floors = _floors(self.logits, got_PS)
        return floors if floors < LIMIT_FLOORS else None


def recognised(
    oracle: Oracle, p: Precision, site: str, got_TS: Floats, heads: Mapping[str, Floats]
) -> str | None:
    """The mistake that leads to these logits of the sampled tokens, in words; of several the
    closest.

    Args:
        oracle: its states.
        p: the port's precision.
        site: the state that was decoded.
        got_TS: what the port has, of the tokens of ``sampled``.
        heads: other matrices [V, D] that the port holds, by its own names.
    """
    ids_S = sampled(len(oracle.wte_VD))

    def tried() -> Iterator[_Decoded]:
        for message, state in _decodings(oracle, p, site):
            yield _Decoded(message, oracle.head.rounding(p, state, ids_S))
        right, right_head = oracle.norm(p, _state(oracle, site)), oracle.subject.config.head
        for name, head_VD in heads.items():
            head_SD = np.asarray(head_VD[ids_S], np.float64)
            message = f"{_not_tied(oracle)}it is {name}, which is not {right_head}"
            yield _Decoded(message, op_unembed.rounding(p, right, head_SD))

    with np.errstate(all="ignore"):
        found = explain(got_TS[:POSITIONS], tried())
    return found.fitting[0].description if found.fitting else None


def another_head(oracle: Oracle, p: Precision, sites: Sequence[str], got_NTS: Floats) -> str | None:
    """Whether one matrix that is not wte leads from the oracle's decoded states to these logits.

    It is solved for. That says something only where there are more states than unknowns.
    """
    right = oracle.decoded(p, sites, slice(None))
    assert right.budget is not None, "an operation's result has a budget"
    width = right.value.shape[-1]
    flat = Measured(right.value.reshape(-1, width), right.budget.reshape(-1, width))
    got = got_NTS.reshape(len(flat.value), -1)
    if len(flat.value) < 2 * width or not np.isfinite(got).all():
        return None
    head_DS, *_ = np.linalg.lstsq(flat.value, got, rcond=None)
    if _floors(op_unembed.rounding(p, flat, head_DS.T), got) > LIMIT_FLOORS:
        return None
    head = oracle.subject.config.head
    multiplied = f"the normed states are multiplied with one matrix, but not {head}"
    return f"{_not_tied(oracle)}{multiplied}"


def _not_tied(oracle: Oracle) -> str:
    """What another head means, where the model's is wte."""
    return "the head is not tied: " if oracle.subject.config.tied else "another head: "


def _decodings(oracle: Oracle, p: Precision, site: str) -> Iterator[tuple[str, Measured]]:
    state = _state(oracle, site)
    once = oracle.norm(p, state)
    last = site == oracle.sites[-1]
    yield (
        "ln_f is applied twice"
        + (": the last hidden state that transformers hands out has been through it" * last),
        oracle.norm(p, once),
    )
    yield "ln_f is missing", state
    yield "ln_f is without its gain and bias", oracle.plain(p, state)
    for layer in range(oracle.subject.config.n_layer):
        for norm in _norms(oracle, layer):
            words = f"the layer norm is h.{layer}.{norm}, not ln_f"
            yield words, oracle.norm(p, state, f"h{layer}/{norm}")
    for other, known in zip(oracle.sites, oracle.states, strict=True):
        if other != site:
            normed = oracle.norm(p, _first(known))
            yield f"this is the state of {other}{_shift(oracle, site, other)}", normed
            if other == oracle.sites[-1]:
                words = f"this is the state of {other} after ln_f, applied once more"
                yield words + _shift(oracle, site, other), oracle.norm(p, normed)


def _norms(oracle: Oracle, layer: int) -> list[str]:
    """Those of a block that read the stream."""
    table = tensor_table(oracle.subject.config)
    return [norm for norm in ("ln_1", "ln_2") if f"h{layer}/{norm}/g" in table]


def _shift(oracle: Oracle, site: str, other: str) -> str:
    """Blocks are counted by the stream behind them; the embedding is behind block −1."""
    both = [sites(oracle.subject.config)[name] for name in (site, other)]
    if "resid_mid" in (at.kind for at in both):
        return ""
    here, there = (-1 if at.layer is None else at.layer for at in both)
    return ": the states are off by one layer" if abs(here - there) == 1 else ""


def _state(oracle: Oracle, site: str) -> Measured:
    return _first(oracle.states[oracle.sites.index(site)])


def _first(state: Measured) -> Measured:
    assert state.budget is not None, "every state has its floor"
    return Measured(state.value[:POSITIONS], state.budget[:POSITIONS])


def _floors(expected: Measured, got: Floats) -> float:
    assert expected.budget is not None, "an operation's result has a budget"
    score = (got - expected.value) / expected.budget
    floors = float(np.sqrt(np.mean(score**2)))
    return floors if np.isfinite(floors) else np.inf
