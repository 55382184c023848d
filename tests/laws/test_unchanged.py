"""After a law that writes, every weight is what it was, or nothing is said of the port."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import INPUTS, checkpoint
from subjects import port, subject

from gpt_verify.errors import ToolError
from gpt_verify.findings import Finding, Status, Verdict
from gpt_verify.judging import checking
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws import table as laws
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.unchanged import Weights


def test_one_bit_of_one_weight_is_enough() -> None:
    parameters = list(subject(port()).parameters)
    held = Weights("a port", parameters)
    held.note()
    held.hold("symmetry.heads")
    last = parameters[-2]  # the last one is wte once more
    assert last.write is not None
    value = np.array(last.read())
    value.reshape(-1).view(np.uint32)[0] ^= 1
    last.write(value)
    with pytest.raises(ToolError) as error:
        held.hold("symmetry.heads")
    assert str(error.value).startswith(f"a port: {last.name} does not hold what it held before")


@pytest.mark.parametrize("law", [law.id for law in laws.CHECKS if law.writes])
def test_a_law_that_leaves_something_behind_ends_the_run(
    law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 2, whatever the law had found: no finding about the port is made of it."""

    def untidy(judged: Subject) -> Iterable[Finding]:
        parameter = judged.parameters[3]
        assert parameter.write is not None
        parameter.write(parameter.read() * 2)
        return [Finding(law, Status.PASSED, "nothing to see", None)]

    altered = tuple(
        replace(entry, check=untidy) if entry.id == law else entry for entry in laws.CHECKS
    )
    monkeypatch.setattr(checking, "CHECKS", altered)
    source = checkpoint()
    report = judge(
        "port", source, INPUTS[:1], None, "cpu", Silent(), build=lambda: port(source=source)
    )
    assert report.verdict is Verdict.UNJUDGED
    assert report.error is not None and f"before {law}" in report.error
    assert not any(f.status is Status.FAILED for f in report.findings)


def test_every_law_that_writes_says_so() -> None:
    """A law that writes without saying so would not be looked after."""
    for entry in laws.CHECKS:
        if entry.writes:
            continue
        judged = subject(port())

        def refused(value: object, entry: laws.Law = entry) -> None:
            raise AssertionError(f"{entry.id} writes to the port")

        judged.parameters = [replace(p, write=refused, write_at=None) for p in judged.parameters]
        if entry.lacking(judged) is None:
            with suppress(NotExamined):
                list(entry.check(judged))


@pytest.mark.parametrize("most", [0.3, 1.0])
def test_what_a_port_writes_itself_is_a_finding_about_it(most: float) -> None:
    """``max_norm`` of an embedding shortens rows of its table at every lookup, for good."""

    def max_norm(model: Any) -> None:
        model.transformer.wte.max_norm = most

    source = checkpoint()
    report = judge(
        "port", source, INPUTS, None, "cpu", Silent(), build=lambda: port(max_norm, source=source)
    )
    assert report.error is None
    assert report.verdict is Verdict.REFUTED
    (state,) = (f for f in report.findings if f.id == "determinism.state")
    assert state.fault == "weights-written"
    assert "its calls write to its weights: " in state.message and "wte" in state.message
    assert f"rows that are longer than {most:g} are shortened to it" in state.message
    assert "weights-written" in report.explained_by
    why = {f.message for f in report.findings if f.id.startswith("symmetry.")}
    assert any("its own calls write to its weights" in words for words in why), why
