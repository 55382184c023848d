"""The law of devices: a GPU and the CPU compute the same logits, to within rounding."""

from __future__ import annotations

import numpy as np

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.port import ELSEWHERE

#: Tokens of the sequence on which the two are compared.
LENGTH = 64


def check_device(subject: Subject) -> list[Finding]:
    """Each device is judged against float64 by the other laws; here they meet each other."""
    port = subject.port
    if port.device == "cpu":
        raise NotExamined("the port ran on the CPU only")
    elsewhere = subject.offers[ELSEWHERE]
    tokens = subject.tokens(1, min(LENGTH, subject.config.n_ctx))
    here = np.array(port.logits(tokens)[0])
    with elsewhere("cpu") as other:
        there = other.logits(tokens)[0]
    if same_bits(here, there):
        return [Finding("device", Status.PASSED, f"{port.device} and cpu: same bits")]
    floors = subject.floors(np.asarray(here, np.float64) - there, tokens[0])
    # Each may be off by the limit, in directions of its own.
    limit = np.sqrt(2.0) * LIMIT_FLOORS
    status = Status.PASSED if floors <= limit else Status.FAILED
    message = f"logits on {port.device} and on cpu differ by {floors:.3g} noise floors (RMS)"
    return [Finding("device", status, message, None, floors, float(limit))]
