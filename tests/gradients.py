"""A port's derivatives as whole tensors, and ports that hand over other ones than they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt_verify import port as ports
from gpt_verify.port import GRADIENTS, End, Floats, GradientSink, Port, Tokens


@dataclass(frozen=True)
class Gradients:
    """All derivatives of the mean loss of a batch.

    Attributes:
        parameters: parameter name → derivative in the port's layout.
        wte_input: the part of d loss / d wte that comes through the lookup, [V, D].
        wte_output: the part that comes through the last product. Either is None where the port
            does not tell them apart.
    """

    parameters: dict[str, Floats]
    wte_input: Floats | None
    wte_output: Floats | None


def gathered(port: Port, tokens: Tokens) -> Gradients:
    """What a port hands over, added up."""
    return _gathered(port.offers()[GRADIENTS], tokens)


def answering(made: Port, change: Callable[[Gradients], Gradients]) -> Port:
    """A port that reports other derivatives than it has."""
    original = made.offers()[GRADIENTS]
    assert original is not None

    def gradients(tokens: Tokens, sink: GradientSink) -> bool:
        found = change(_gathered(original, tokens))
        sink.restart()
        for name, value in found.parameters.items():
            sink.add(name, value)
        if found.wte_input is None or found.wte_output is None:
            return False
        sink.add(End.LOOKUP, found.wte_input)
        sink.add(End.HEAD, found.wte_output)
        return True

    made.offer(GRADIENTS, gradients)
    return made


def _gathered(gradients: Callable[[Tokens, GradientSink], bool], tokens: Tokens) -> Gradients:
    kept = ports.Gradients()
    apart = gradients(tokens, kept)
    if not apart:
        return Gradients(kept.parameters, None, None)
    known = next(iter(kept.ends.values()))
    parts = (kept.ends.get(end, np.zeros_like(known)) for end in (End.LOOKUP, End.HEAD))
    return Gradients(kept.parameters, *parts)
