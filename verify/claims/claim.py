"""What a claim is: a sentence that people say about GPT-2, what we expect of it, and the answer.

A claim is data. The function that decides it is registered beside it under the same id
(``gpt_verify.claims.evidence``); what it measured is a ``Measured``, and what became of the claim
in one run is a ``Decided``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """The kind of evidence that decides a claim."""

    #: Follows from the architecture: decided on any checkpoint, by every model that is asked.
    ARCHITECTURE = "A"
    #: Depends on trained weights: measured on the checkpoint in use, asserted on OpenAI's.
    WEIGHTS = "W"
    #: About a document or a code base: decided on that code, where it is installed.
    DOCUMENT = "D"
    #: Cannot be decided by running the model; why not is measured.
    NOT_DECIDABLE = "N"


class Verdict(StrEnum):
    TRUE = "true"
    FALSE = "false"
    CORRECTED = "true-with-a-correction"
    DEPENDS = "depends-on-weights"
    UNDECIDABLE = "undecidable-here"


@dataclass(frozen=True)
class Source:
    """A text in which a claim was made, or that settles it.

    Attributes:
        author: who said it.
        title: of the text.
        link: empty where it is not known.
        said: the claim was made there; else it is a text to look it up in, which may contradict it.
    """

    author: str
    title: str
    link: str = ""
    said: bool = False


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        id: ``tie-transpose``.
        statement: what is said, in our words.
        kind: on what it is decided.
        expected: our own judgement. The evidence decides; where it disagrees, the run fails.
        answer: two or three sentences with the measured numbers in braces, by their names in
            ``Measured.numbers``.
        sources: where it was said, if it has a single source, and where it can be looked up.
        proof: of a theorem, which no number of samples settles: why it holds, in a line. What was
            measured then illustrates it, and shows that the model is a case of it.
        criterion: of a claim about weights, whose text gives no number: what is taken to make it
            hold, after "where".
        released: of a claim about weights, whether it is said to hold on the released ones: that is
            asserted there. None where the text makes no such assertion.
    """

    id: str
    statement: str
    kind: Kind
    expected: Verdict
    answer: str
    sources: tuple[Source, ...] = ()
    proof: str = ""
    criterion: str = ""
    released: bool | None = None


@dataclass(frozen=True)
class Measured:
    """The verdict and the numbers that one evidence function found.

    Attributes:
        verdict: what follows from it.
        numbers: name → number or words; those that the answer shows are the same on every machine.
        holds: of a claim about weights, whether it holds on this checkpoint.
        asked: names of the models or code bases that were asked.
        dissent: where they do not agree, who says what.
    """

    verdict: Verdict
    numbers: Mapping[str, Any] = field(default_factory=dict)
    holds: bool | None = None
    asked: tuple[str, ...] = ()
    dissent: str = ""


@dataclass(frozen=True)
class Decided:
    """A claim in one run.

    Attributes:
        claim: which.
        measured: None where it could not be judged.
        evidence: the function that decided it, ``gpt_verify.claims.tying:transpose``.
        asserted: of a claim about weights, whether ``claim.released`` was asserted.
        missing: why it could not be judged, in one line.
        answer: the paragraph, numbers filled in.
        repeat: the command line that decides it again.
        exception: what ``missing`` words; not part of any file.
    """

    claim: Claim
    measured: Measured | None
    evidence: str
    asserted: bool = False
    missing: str = ""
    answer: str = ""
    repeat: str = ""
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def verdict(self) -> Verdict | None:
        """``true``, ``false``, ``true-with-a-correction``, ``depends-on-weights`` or
        ``undecidable-here``, all of them strings; None where it could not be judged."""
        return self.measured.verdict if self.measured else None

    @property
    def unasserted(self) -> bool:
        """The claim is about OpenAI's released weights, and was measured on others."""
        about_released = self.claim.released is not None
        return about_released and self.measured is not None and not self.asserted

    @property
    def contradicted(self) -> bool:
        """The evidence says something else than what is expected."""
        if self.measured is None:
            return False
        if self.asserted and self.measured.holds is not self.claim.released:
            return True
        return self.measured.verdict is not self.claim.expected or bool(self.measured.dissent)

    @property
    def test(self) -> str:
        """The test that decides it."""
        return f"tests/claims/test_claims.py::test_claim[{self.claim.id}]"
