"""Faults of what lies around a plain pass: each is refuted by its law, and named."""

from __future__ import annotations

import pytest
from fault_ports import ANY, judged
from models import failed_laws, finding

from verify.faults.catalogue import CATALOGUE
from verify.findings import Verdict
from verify.process_restored import restored

FAMILIES = ("loss", "cache", "batch", "precision", "padding", "positions")
FAMILIES += ("gradient", "determinism", "tying")
#: The first and the last of each: that every one is named by its law is tested there.
FAULTS = [
    name
    for family in FAMILIES
    for members in [[n for n, f in CATALOGUE.items() if f.family == family and f.law]]
    for name in (members[0], members[-1])
]


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_refuted_by_its_law_and_named(name: str) -> None:
    fault = CATALOGUE[name]
    with restored():
        report = judged(ANY + name)
    assert report.verdict is Verdict.REFUTED
    assert fault.law in failed_laws(report)
    assert report.explained_by == (name,), report.causes
    if fault.family in ("loss", "cache", "padding"):  # the others show in a plain pass as well
        assert report.first_divergence is None


@pytest.mark.parametrize("name", [n for n, f in CATALOGUE.items() if f.entails])
def test_what_only_follows_from_a_fault_is_not_named_beside_it(name: str) -> None:
    """A hidden copy is never trained: the law by gradient sees an end that is detached."""
    report = judged(ANY + name)
    (fault,) = report.causes
    assert fault.fault == name
    assert {"tying.storage", "tying.gradient"} <= set(fault.where)
    named = {f.details["fault"] for f in report.findings if "fault" in f.details}
    assert named == {name, *CATALOGUE[name].entails}


def test_a_trap_is_no_fault() -> None:
    """A port that derives no positions from a mask, and takes them, is right; it says so."""
    report = judged(ANY + "padding-positions-counted")
    assert report.verdict is Verdict.VERIFIED
    assert "pass position_ids" in finding(report, "positions.padding").message
    assert report.explained_by == ()
