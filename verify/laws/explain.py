"""How a failure gets its name: by the one hypothesis that fits what the port did.

A law gathers evidence, and has hypotheses: known faults, each with what a port that has it would
have done. This is the only place that decides between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from gpt_verify.findings import Named, naming

Evidence_contra = TypeVar("Evidence_contra", contravariant=True)

#: What is said where no hypothesis fits, or several do that cannot be told apart.
UNEXPLAINED = "unexplained"


class Hypothesis(Protocol[Evidence_contra]):
    """One known fault, as a law sees it."""

    @property
    def fault(self) -> str | None:
        """Its name in the catalogue; empty or None where the catalogue has none."""

    @property
    def description(self) -> str:
        """What a port that has it does wrong."""

    def fits(self, evidence: Evidence_contra) -> float | None:
        """What it leaves of the failure, in any unit; None where the port did something else."""


Tried = TypeVar("Tried", bound="Hypothesis[Any]")


@dataclass(frozen=True)
class Explained(Generic[Tried]):
    """What came of all hypotheses.

    Attributes:
        fitting: those that leave least: one is the explanation, several are alternatives that what
            the port did does not tell apart.
    """

    fitting: tuple[Tried, ...] = ()

    @property
    def by(self) -> Tried | None:
        """The one that fits; None where none does, or several."""
        return self.fitting[0] if len(self.fitting) == 1 else None

    @property
    def description(self) -> str:
        """What the port does wrong, or that it is not known."""
        return UNEXPLAINED if self.by is None else self.by.description

    @property
    def named(self) -> Named | None:
        """The fault, for a finding."""
        return None if self.by is None else naming(self.by.fault, words=self.by.description)

    def __bool__(self) -> bool:
        return self.by is not None


def explain(evidence: Any, hypotheses: Iterable[Tried]) -> Explained[Tried]:
    """Try every hypothesis on what a port did, and keep those that leave least."""
    least = float("inf")
    fitting: list[Tried] = []
    for hypothesis in hypotheses:
        left = hypothesis.fits(evidence)
        if left is None or left > least:
            continue
        if left < least:
            least, fitting = left, []
        fitting.append(hypothesis)
    return Explained(tuple(fitting))


def agreed(faults: Iterable[str | None]) -> Named | None:
    """The fault by which every part of a failure is explained; None where some part is not, or by
    another one."""
    distinct = set(faults)
    return naming(*distinct) if len(distinct) == 1 else None
