"""How evidence is registered, and how one function is asked of several models."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Measured
from gpt_verify.claims.models import Model
from gpt_verify.port import NotExamined

Evidence = Callable[[Case], Measured]

#: Claim's id → the function that decides it.
EVIDENCE: dict[str, Evidence] = {}


class LedgerError(Exception):
    """A claim without evidence, evidence without a claim, or two of the same id."""


def evidence(claim: str) -> Callable[[Evidence], Evidence]:
    """Register a function as the evidence of a claim.

    Raises:
        LedgerError: it has one already.
    """

    def register(function: Evidence) -> Evidence:
        if claim in EVIDENCE:
            raise LedgerError(f"{claim}: two evidence functions")
        EVIDENCE[claim] = function
        return function

    return register


def on_each_model(function: Callable[[Model], Measured]) -> Evidence:
    """Ask every model, and let them agree.

    A model that cannot show what is needed (``NotExamined``) is not asked; if none can, the claim
    is not judged. Numbers are those of the first model; where two verdicts differ, that of the
    first dissenter is the verdict, and it is named.
    """

    @wraps(function)
    def ask(case: Case) -> Measured:
        found: dict[str, Measured] = {}
        lacking: list[str] = []
        for model in case.models():
            try:
                found[model.name] = function(model)
            except NotExamined as missing:
                lacking.append(f"{model.name}: {missing}")
        if not found:
            raise NotExamined("; ".join(lacking) or "no model to ask")
        first, *others = found.items()
        _, measured = first
        verdict = next(
            (m.verdict for _, m in others if m.verdict is not measured.verdict), measured.verdict
        )
        dissent = ""
        if verdict is not measured.verdict:
            dissent = ", ".join(f"{name}: {m.verdict}" for name, m in found.items())
        return Measured(verdict, measured.numbers, measured.holds, tuple(found), dissent)

    return ask
