"""A port as a law is handed it, in one line; and one law checked for one port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models import checkpoint

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.table import CHECKS
from gpt_verify.matching.match import match
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import PARAMETERS, Dtype, Port


def subject(port: Port, source: Checkpoint | None = None, seed: int = 0) -> Subject:
    """What ``gpt_verify.judging.judge`` hands to the laws."""
    source = source or checkpoint()
    weights = DeclaredWeights(source.tensors, PRECISIONS[port.dtype])
    shown = port.offers().get(PARAMETERS)
    if shown is None:
        return Subject(port, source, weights, seed)
    parameters = list(shown())
    matching = match(parameters, source.config, weights)
    return Subject(port, source, weights, seed, parameters, matching)


def hold(law: str, port: Port, source: Checkpoint | None = None, seed: int = 0) -> list[Finding]:
    """The findings of one law of the table, as ``gpt_verify.judging.judge`` would make them."""
    entry = next(entry for entry in CHECKS if entry.id == law)
    if why := next((c.lacking for c in entry.needs if c not in port.offers()), None):
        return [Finding(law, Status.NOT_EXAMINED, why)]
    try:
        return entry.hold(subject(port, source, seed))
    except NotExamined as missing:
        return [Finding(law, Status.NOT_EXAMINED, str(missing))]
    except Exception as error:
        return [Finding(law, Status.FAILED, f"the port raised {type(error).__name__}: {error}")]


def port(
    alter: Callable[[Any], None] = lambda model: None,
    attention: str = "eager",
    dtype: Dtype | None = None,
    source: Checkpoint | None = None,
    device: str = "cpu",
) -> Port:
    """transformers' GPT-2 as a port, altered after it was loaded."""
    from gpt_verify.ports.huggingface import huggingface

    made = huggingface(source or checkpoint(), attention, dtype, device)  # type: ignore[arg-type]
    alter(made.module)
    return made


def message(findings: list[Finding], status: Status) -> str:
    """What the findings of this status say, joined."""
    return "; ".join(f.message for f in findings if f.status is status)
