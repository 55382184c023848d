"""What the usual comparisons say of a port: each as it is commonly written, on the same inputs.

Two implementations are compared in float32; the other one is right. A comparison *catches* a port
that it would not let pass. Each of them is in use: allclose with a tolerance by hand in most tests
of ports; a normalised mean squared error, equal top tokens, and means of tensors in conversion
scripts; the signed mean of the difference of layer-normed states in others, which is zero whatever
the states are.
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
    "top-1": _logits(_top_1),
    "tensor means": _means,
    "signed mean": _signed_mean,
}
