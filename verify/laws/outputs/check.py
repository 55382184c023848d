"""The laws of outputs: what a port hands out of its inside is what it computes with.

Whoever probes a model, or draws its attention, takes ``hidden_states`` and ``attentions`` for what
their names say. They are compared with what was seen inside the same port: same bits, or within the
noise that the reference has there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.graph.cascade import CascadeScores, Lockstep
from gpt_verify.laws.agreement import LIMIT_PAIR
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.port import ACTIVATIONS, PATTERNS, STATES
from gpt_verify.sites import sites

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

#: Tokens of the sequence.
LENGTH = 9


@dataclass(frozen=True)
class HandedOut:
    """One value that a port handed out.

    Attributes:
        name: for messages: ``hidden_states[1]``.
        wanted: the sites one of which it is.
        value: of one sequence.
    """

    name: str
    wanted: tuple[str, ...]
    value: Floats


def check_states(subject: Subject) -> Iterator[Finding]:
    """The hidden states."""
    tokens = _tokens(subject)
    found = subject.offers[STATES](tokens)
    due = subject.config.n_layer + 1
    if len(found) != due:
        message = f"{len(found)} hidden states are handed out, should be {due}"
        yield Finding("outputs.states", Status.FAILED, message)
        return
    values = [
        HandedOut(f"hidden_states[{i}]", wanted, value[0])
        for i, (wanted, value) in enumerate(found)
    ]
    kinds = {"embed", "ln_embed", "resid_mid", "resid_post", "ln_f", "attn.out", "mlp.out"}
    yield _judged(subject, "outputs.states", tokens, values, kinds | {"ln_1", "ln_2"})


def check_patterns(subject: Subject) -> Iterator[Finding]:
    """The patterns of attention."""
    tokens = _tokens(subject)
    found, layers = subject.offers[PATTERNS](tokens), subject.config.n_layer
    if len(found) != layers:
        message = f"{len(found)} attentions are handed out, should be {layers}"
        yield Finding("outputs.patterns", Status.FAILED, message)
        return
    values = [
        HandedOut(f"attentions[{i}]", (f"h.{i}.attn.pattern",), value[0])
        for i, value in enumerate(found)
    ]
    yield _judged(subject, "outputs.patterns", tokens, values, {"attn.pattern", "attn.scores"})


def _tokens(subject: Subject) -> Tokens:
    return subject.tokens(1, min(LENGTH, subject.config.n_ctx), 81)


def _judged(
    subject: Subject, law: str, tokens: Tokens, values: Sequence[HandedOut], kinds: set[str]
) -> Finding:
    own = _seen(subject, tokens, kinds)
    apart = _Apart(subject, tokens[0], own)
    compared = [value for value in values if _can_be_judged(value, own, apart)]
    if not compared:
        raise NotExamined("none of what it hands out was seen inside it")
    worst = 0.0
    for value in compared:
        floors = min(apart.floors(value.value, site) for site in value.wanted if site in own)
        worst = max(worst, floors)
        if floors > LIMIT_PAIR:
            return _failed(law, value, floors, own, apart, compared)
    how = "same bits" if worst == 0 else f"within rounding, {worst:.2g} noise floors"
    names = f"{compared[0].name} to {compared[-1].name}, what they are documented to be"
    return Finding(law, Status.PASSED, f"{names}: {how}", None, worst, LIMIT_PAIR)


def _can_be_judged(value: HandedOut, own: dict[str, Floats], apart: _Apart) -> bool:
    """Every site that it may be was seen, or it is one that was: what it is not says nothing where
    it may be the one that was not seen (``ln_f`` of a head that reads a hidden copy)."""
    seen = [site for site in value.wanted if site in own]
    if len(seen) == len(value.wanted):
        return bool(seen)
    return any(apart.floors(value.value, site) <= LIMIT_PAIR for site in seen)


def _seen(subject: Subject, tokens: Tokens, kinds: set[str]) -> dict[str, Floats]:
    """The sites of these kinds, as they are seen inside the port."""
    table, own = sites(subject.config), {}

    def visit(site: str, value: Floats, narrowest: str | None = None) -> None:
        if table[site].kind in kinds and len(value) == 1:
            own[site] = np.array(value[0])

    subject.offers[ACTIVATIONS](tokens, visit)
    return own


class _Apart:
    """How far something is from a site, in noise floors of that site."""

    def __init__(self, subject: Subject, tokens_T: Tokens, own: dict[str, Floats]) -> None:
        self._subject, self._tokens_T, self._own = subject, tokens_T, own
        self._noise: dict[str, Floats] = {}

    def floors(self, value: Floats, site: str) -> float:
        expected = self._own[site]
        if same_bits(value, expected):
            return 0.0
        if value.shape != expected.shape:
            return math.inf
        error = np.asarray(value, np.float64) - expected
        if not error.any():
            return 0.0
        scores = CascadeScores()
        scores.add(error, self._noise_of(site), None)
        return scores.floors()

    def _noise_of(self, site: str) -> Floats:
        """Of a pattern over all sources, also those that are hidden, where it is 0."""
        if site not in self._noise:
            subject = self._subject
            lockstep = Lockstep(subject.config, subject.weights, subject.precision, self._tokens_T)
            with np.errstate(all="ignore"):
                known = lockstep.value(site)
            assert known is not None, "it is the first that is asked for"
            self._noise[site] = known[1]
        return self._noise[site]


def _failed(
    law: str,
    first: HandedOut,
    floors: float,
    own: dict[str, Floats],
    apart: _Apart,
    compared: Sequence[HandedOut],
) -> Finding:
    """What it is instead, where that was seen inside the port as well."""
    expected = own[next(site for site in first.wanted if site in own)]
    instead = [_what(value, own, apart) for value in compared]
    known = instead[compared.index(first)]
    said = f"is not {' or '.join(first.wanted)}"
    if first.value.shape != expected.shape:
        said = f"has shape {list(first.value.shape)}, should be {list(expected.shape)}"
    else:
        error = np.abs(np.asarray(first.value, np.float64) - expected)
        at = np.unravel_index(int(np.argmax(np.nan_to_num(error, nan=np.inf))), error.shape)
        index = ", ".join(map(str, at))
        said = (
            f"[{index}] = {float(first.value[at]):.9g}, should be {float(expected[at]):.9g} "
            f"({' or '.join(first.wanted)}; {floors:.3g} noise floors)"
        )
    words = f": it is {known}" if known else ""
    fault = _fault(law, compared, instead)
    return Finding(
        law,
        Status.FAILED,
        f"{first.name}{' ' if said[0] != '[' else ''}{said}{words}",
        None,
        floors,
        LIMIT_PAIR,
        named=naming(fault),
    )


def _what(value: HandedOut, own: dict[str, Floats], apart: _Apart) -> str:
    """The site that something is, or what was made of its own; empty where nothing is known."""
    for site in (*value.wanted, *own):
        if site in own and apart.floors(value.value, site) <= LIMIT_PAIR:
            return site
    for site, seen in own.items():
        if seen.ndim != 3:
            continue
        if apart.floors(np.swapaxes(value.value, -1, -2), site) <= LIMIT_PAIR:
            return f"{site}, transposed"
        mean = np.asarray(seen, np.float64).mean(axis=0)
        if value.value.shape == mean.shape and np.allclose(
            value.value, mean, atol=float(np.spacing(np.asarray(value.value).max())) * len(seen)
        ):
            return f"{site}, averaged over the heads"
        if _unmasked_same(value.value, seen):
            return f"{site} before its mask"
    return ""


def _unmasked_same(value: Floats, seen: Floats) -> bool:
    """The same numbers at all that is not hidden."""
    below = np.tri(*seen.shape[-2:], dtype=np.bool_)
    return value.shape == seen.shape and same_bits(value[:, below], seen[:, below])


def _fault(law: str, compared: Sequence[HandedOut], instead: Sequence[str]) -> str | None:
    """The mistake that makes all of them what they are."""
    wrong = [
        (i, value, what)
        for i, (value, what) in enumerate(zip(compared, instead, strict=True))
        if what not in value.wanted
    ]
    if law == "outputs.patterns":
        kinds = {what.partition(".attn.")[2] for _, _, what in wrong}
        for kind, fault in _OF_PATTERNS.items():
            if kinds and all(found.startswith(kind) for found in kinds):
                return fault
        return _neighbours(wrong, compared, "outputs-patterns-of-another-layer")
    return _neighbours(wrong, compared, "outputs-states-off-by-one")


#: How what is there instead of a pattern begins → the fault.
_OF_PATTERNS = {
    "scores": "outputs-patterns-before-softmax",
    "pattern, transposed": "outputs-patterns-transposed",
    "pattern, averaged": "outputs-patterns-averaged",
}


def _neighbours(
    wrong: Sequence[tuple[int, HandedOut, str]], compared: Sequence[HandedOut], fault: str
) -> str | None:
    """Each that is wrong is what another one should be."""
    others = {site for value in compared for site in value.wanted}
    others |= {f"h.{len(compared) - 2}.resid_post"}
    return fault if wrong and all(what in others for _, _, what in wrong) else None
