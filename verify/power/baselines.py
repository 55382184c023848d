"""What the usual comparisons say of a port: each as it is commonly written, on the same inputs.

Two implementations are compared in float32; the other one is right. A comparison *catches* a port
that it would not let pass. Each of them is in use: allclose with a tolerance by hand in most tests
of ports; a normalised mean squared error, equal top tokens, and means of tensors in conversion
scripts; a cosine, a divergence and top tokens that each finds among the other's five in those of
today's families; the signed mean of the difference of layer-normed states in others, which is zero
whatever the states are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.inputs import Input
from gpt_verify.port import ACTIVATIONS, PARAMETERS, Port

Floats = NDArray[np.floating]

#: torch.allclose's own relative tolerance, which nobody sets.
_RELATIVE = 1e-5
_LARGEST_NMSE = 1e-2
_LEAST_COSINE = 0.99
_LARGEST_KL_NATS = 0.1
#: Of the tokens of one model, the first must be among so many of the other's.
_TOP = 5
#: Means that agree to four decimals are taken for equal.
_MEAN = 5e-5


@dataclass(frozen=True)
class Shown:
    """The tensors that one port shows to a comparison that is made by hand.

    Attributes:
        logits: of each input, float[B, T, V].
        states: the residual stream after each block of the longest input, by site; empty where
            hidden.
        tensors: the port's tensors by name; empty where it does not show them.
    """

    logits: Sequence[Floats]
    states: Mapping[str, Floats]
    tensors: Mapping[str, Floats]


def show(port: Port, inputs: Sequence[Input]) -> Shown:
    """Run a port on all inputs."""
    logits = [np.array(port.logits(item.tokens), np.float64) for item in inputs]
    states: dict[str, Floats] = {}
    if activations := port.offers().get(ACTIVATIONS):
        longest = max(inputs, key=lambda item: item.tokens.shape[1])
        activations(longest.tokens, _Keep(states))
    parameters = port.offers().get(PARAMETERS)
    tensors = {p.name: p.read() for p in parameters()} if parameters else {}
    return Shown(logits, states, tensors)


class _Keep:
    def __init__(self, kept: dict[str, Floats]) -> None:
        self._kept = kept

    def __call__(self, site: str, value: Floats, narrowest: str | None = None) -> None:
        if site.endswith("resid_post"):
            self._kept[site] = np.array(value, np.float64)


def caught(port: Shown, right: Shown) -> dict[str, bool]:
    """Comparison → whether it refuses the port."""
    with np.errstate(all="ignore"):
        return {name: not passes(port, right) for name, passes in COMPARISONS.items()}


def _logits(passes: Callable[[Floats, Floats], bool]) -> Callable[[Shown, Shown], bool]:
    """A comparison of the logits of every input."""

    def every(port: Shown, right: Shown) -> bool:
        pairs = zip(port.logits, right.logits, strict=True)
        return all(a.shape == b.shape and passes(a, b) for a, b in pairs)

    return every


def _close(tolerance: float) -> Callable[[Floats, Floats], bool]:
    return lambda a, b: bool(np.all(np.abs(a - b) <= tolerance + _RELATIVE * np.abs(b)))


def _nmse(a: Floats, b: Floats) -> bool:
    return bool(np.mean((a - b) ** 2) / np.mean(b**2) < _LARGEST_NMSE)


def _top_1(a: Floats, b: Floats) -> bool:
    return bool(np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1)))


def _cosine(a: Floats, b: Floats) -> bool:
    """Of the logits of the last position, in every row."""
    a_BV, b_BV = a[:, -1], b[:, -1]
    sizes_B = np.linalg.norm(a_BV, axis=-1) * np.linalg.norm(b_BV, axis=-1)
    return bool(np.all(np.sum(a_BV * b_BV, axis=-1) / sizes_B >= _LEAST_COSINE))


def _divergence(a: Floats, b: Floats) -> bool:
    """KL(right ‖ port), the mean over all positions."""
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    return bool(np.mean(np.sum(np.exp(log_b) * (log_b - log_a), axis=-1)) < _LARGEST_KL_NATS)


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _mutual_top(a: Floats, b: Floats) -> bool:
    """At the last position of every row: the first token of each is among the other's first
    five."""
    return _first_among(a[:, -1], b[:, -1]) and _first_among(b[:, -1], a[:, -1])


def _first_among(a_BV: Floats, b_BV: Floats) -> bool:
    if not np.isfinite(a_BV).all():
        return False
    first_B1 = a_BV.argmax(axis=-1)[:, None]
    higher_B = np.sum(b_BV > np.take_along_axis(b_BV, first_B1, axis=-1), axis=-1)
    return bool(np.all(higher_B < _TOP))


def _means(port: Shown, right: Shown) -> bool:
    """The means of every tensor of the port, and of the logits, are close."""
    pairs = [
        (value, right.tensors[name])
        for name, value in port.tensors.items()
        if name in right.tensors
    ]
    pairs += list(zip(port.logits, right.logits, strict=True))
    return all(abs(float(np.mean(a, dtype=np.float64) - np.mean(b))) < _MEAN for a, b in pairs)


def _signed_mean(port: Shown, right: Shown) -> bool:
    """The signed mean of the difference of the states, each normalised, is small: Σ (x - mean) is 0
    for every x."""
    for site in port.states.keys() & right.states.keys():
        difference = _normalised(port.states[site]) - _normalised(right.states[site])
        if not abs(float(np.mean(difference))) < _MEAN:
            return False
    return True


def _normalised(x: Floats) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    result: Floats = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return result


#: Name, as the tables print it → whether it lets a port pass.
COMPARISONS: dict[str, Callable[[Shown, Shown], bool]] = {
    "allclose 1e-3": _logits(_close(1e-3)),
    "allclose 1e-4": _logits(_close(1e-4)),
    "NMSE < 1e-2": _logits(_nmse),
    "cosine ≥ 0.99": _logits(_cosine),
    "KL < 0.1": _logits(_divergence),
    "mutual top-5": _logits(_mutual_top),
    "top-1": _logits(_top_1),
    "tensor means": _means,
    "signed mean": _signed_mean,
}
