"""What a diagnosis says: the fault that it was, or that none is known."""

from __future__ import annotations

from dataclasses import dataclass

#: Stands for a difference in a tensor that is no known damage; it is the name of no fault.
UNKNOWN_DAMAGE = "weights-unexplained"

#: A candidate that leaves more than this part of a failure, or more than so many budgets, is not
#: near to it.
NEAR, FAR = 0.1, 1e6


@dataclass(frozen=True)
class Candidate:
    """A fault that was tried.

    Attributes:
        fault: its name in the catalogue, or of a kind of damage to a tensor.
        score: what is left of the failure if the port has that fault, in the units of ``before``.
        note: what else was found out: ``float16``, ``bit 22 of element [3, 5]``; often empty.
        beside: a second fault that the port has there as well; empty where one is enough.
    """

    fault: str
    score: float
    note: str = ""
    beside: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        """The one, or both."""
        return (self.fault, self.beside) if self.beside else (self.fault,)

    def __str__(self) -> str:
        named = " and ".join(self.faults)
        return f"{named} ({self.note})" if self.note else named


@dataclass(frozen=True)
class Explanation:
    """The explanation of one failure.

    Attributes:
        where: the site; of a tensor that differs, the tensor.
        before: its score.
        limit: the largest score of what explains it.
        accepted: candidates under the limit, best first. More than one where they cannot be told
            apart on what the port showed.
        nearest: the three best of the others, which do not explain it.
        of_tensor: it is a tensor that is explained.
        reads: the sites that its operation reads.
        precision: the one whose rounding budgets are the unit of the scores.
    """

    where: str
    before: float
    limit: float
    accepted: tuple[Candidate, ...]
    nearest: tuple[Candidate, ...] = ()
    of_tensor: bool = False
    reads: tuple[str, ...] = ()
    precision: str = ""

    @property
    def best(self) -> Candidate | None:
        return self.accepted[0] if self.accepted else None

    @property
    def near(self) -> tuple[Candidate, ...]:
        """Of the nearest, those that leave so little that they are worth a look."""
        return tuple(c for c in self.nearest if c.score <= min(NEAR * self.before, FAR))

    def __str__(self) -> str:
        """With scores of one kind: RMS errors in rounding budgets of one precision (of a tensor,
        the largest error in roundings), without what explains them and with it."""
        unit = "RMS error in rounding budgets"
        unit += f" of {self.precision}" if self.precision else ""
        unit = "largest error in roundings" if self.of_tensor else unit
        if self.best is not None:
            others = self.accepted[1:]
            more = f" (or {', '.join(map(str, others))})" if others else ""
            if self.best.fault == UNKNOWN_DAMAGE:
                what, head = "its tensor", "follows from its tensor, which differs"
            else:
                what, head = "it", f"explained by {self.best}{more}"
            left = f"{self.before:.3g}, and {self.best.score:.2g} with {what} in the reference"
            return f"{head} ({unit}: {left})"
        words = f"unexplained ({unit}: {self.before:.3g})"
        if self.near:
            near = ", ".join(f"{c} (leaves {c.score:.3g})" for c in self.near)
            words += f"; nearest: {near}"
        if self.reads:
            words += f"; look at what makes {self.where} of {' and '.join(self.reads)}"
        return words
