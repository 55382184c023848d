"""What is not in the catalogue is found all the same, and called by what its numbers show or
unexplained: never by a wrong name."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_ports import judged
from models import failed_laws, failures, finding
from unknown import UNKNOWN

from gpt_verify.findings import Verdict

FILE = Path(__file__).with_name("unknown.py")
SITED = [name for name, fault in UNKNOWN.items() if fault.site]


def test_there_are_ten() -> None:
    assert len(UNKNOWN) == 10


@pytest.mark.parametrize("name", UNKNOWN)
def test_it_is_found_where_it_is_and_has_no_wrong_name(name: str) -> None:
    fault = UNKNOWN[name]
    report = judged(f"{FILE}:port_{name}")
    assert report.verdict is Verdict.REFUTED
    assert fault.law in failed_laws(report)
    assert report.first_divergence == fault.site
    assert report.explained_by == ((fault.form,) if fault.form else ()), report.causes
    if fault.form:
        assert [cause.note for cause in report.causes] == [fault.words]
        assert report.explained == f"explained by: {fault.form}"
    elif fault.site:  # what to look at is named, and nothing that leaves most of the failure
        assert "look at what makes" in finding(report, fault.law, fault.site).message
        for explanation in report.explanations:
            assert all(c.score <= explanation.before / 10 for c in explanation.near)


@pytest.mark.parametrize("name", SITED)
def test_from_logits_alone_it_has_no_name_either(name: str) -> None:
    report = judged(f"{FILE}:logits_{name}")
    assert report.explained_by == (), report.causes
    assert all("explained by" not in f.message for f in failures(report))
