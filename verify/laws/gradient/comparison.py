"""What is wrong with a gradient, in the words of somebody who ports models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.directions import Direction

#: Numerators and denominators of a factor that is named.
_LARGEST = 64


@dataclass(frozen=True)
class Comparison:
    """One tensor's derivative in one arithmetic.

    Attributes:
        what: the tensor, and for wte which end.
        direction: v.
        site: the operation that reads it.
        arithmetic: ``float64``.
        got: ⟨gradient, v⟩ of the port.
        expected: of the reference.
        error: scale of what a correct port may be off.
        floors: |got - expected| / error.
        visible: a gradient of zero would have been found.
        idle: the tensor, or the parts of it, that get no gradient at all.
        largest: the largest size of an element of the port's gradient.
        unknown: why nothing can be said of it; empty where something can.
    """

    what: str
    direction: Direction
    site: str
    arithmetic: str
    got: float
    expected: float
    error: float
    floors: float
    visible: bool
    idle: tuple[str, ...]
    largest: float = 0.0
    unknown: str = ""

    @property
    def wrong(self) -> bool:
        return self.floors > LIMIT_FLOORS

    @property
    def factor(self) -> Fraction | None:
        """got ÷ expected where that is a small fraction to within the error, and the error small
        enough to tell it from every other small fraction."""
        uncertain = LIMIT_FLOORS * self.error
        if not (isfinite(self.got) and uncertain * 4 * _LARGEST**2 < abs(self.expected)):
            return None
        found = Fraction(self.got / self.expected).limit_denominator(_LARGEST)
        fits = abs(self.got - float(found) * self.expected) <= uncertain * max(
            1.0, abs(float(found))
        )
        return found if fits and 0 < abs(found.numerator) <= _LARGEST else None


def describe(wrong: Sequence[Comparison]) -> str:
    """All that is wrong at one site; what is wrong in both arithmetics is said once."""
    said: dict[str, Comparison] = {}
    for c in wrong:
        said.setdefault(c.what, c)
    return "; ".join(
        _one(c, any(o.arithmetic != c.arithmetic for o in wrong)) for c in said.values()
    )


def _one(c: Comparison, also_in_another: bool) -> str:
    numbers = (
        f"{c.what}: ⟨gradient, v⟩ = {c.got:.9g}, should be {c.expected:.9g} ± {c.error:.2g} "
        f"({c.floors:.3g} noise floors in {c.arithmetic})"
    )
    if c.got == 0 and c.idle:
        return f"no gradient reaches {c.what}: frozen or detached ({numbers})"
    if c.idle == ("query", "key"):
        return f"{numbers}: none reaches query and key: the attention pattern is detached"
    if c.idle:
        return f"{numbers}: none reaches its {' and '.join(c.idle)}: detached"
    factor = c.factor
    if factor == 2:
        return f"{numbers}: twice what it should be, as if counted twice"
    if factor is not None:
        return f"{numbers}: {factor} of what it should be"
    return numbers


def in_the_backward_pass(site: str, wrong: Sequence[str], order: Sequence[str]) -> str:
    """Where the backward pass goes wrong first.

    Args:
        site: of the message.
        wrong: sites at which a derivative is wrong.
        order: all sites that are compared, in the order of the forward pass.
    """
    first = max(wrong, key=order.index)
    if site != first:
        return f"; in the backward pass from the loss, {first} is the first that is wrong"
    behind = order[order.index(first) + 1 :]
    if not behind:
        return ""
    return f"; right from {behind[0]} on, so the backward pass goes wrong between the two or here"
