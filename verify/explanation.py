"""What a diagnosis says: the fault that it was, or that none is known."""

from __future__ import annotations

from dataclasses import dataclass

#: Stands for a difference in a tensor that is no known damage; it is the name of no fault.
UNKNOWN_DAMAGE = "weights-unexplained"


@dataclass(frozen=True)
class Candidate:
    """A fault that was tried.

    Attributes:
        fault: its name in the catalogue, or of a kind of damage to a tensor.
        score: what is left of the failure if the port has that fault, in the units of ``before``.
        note: what else was found out: ``float16``, ``bit 22 of element [3, 5]``; often empty.
    """

    fault: str
    score: float
    note: str = ""

    def __str__(self) -> str:
        return f"{self.fault} ({self.note})" if self.note else self.fault


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
    """

    where: str
    before: float
    limit: float
    accepted: tuple[Candidate, ...]
    nearest: tuple[Candidate, ...] = ()
    of_tensor: bool = False

    @property
    def best(self) -> Candidate | None:
        return self.accepted[0] if self.accepted else None

    def __str__(self) -> str:
        if self.best is not None:
            others = self.accepted[1:]
            more = f" (or {', '.join(map(str, others))})" if others else ""
            scores = f"{self.before:.3g} without it, {self.best.score:.2g} with it"
            return f"explained by {self.best}{more} (score {scores})"
        near = ", ".join(
            f"{candidate} (leaves {candidate.score:.3g})" for candidate in self.nearest
        )
        return f"unexplained; nearest: {near}" if near else "unexplained"
