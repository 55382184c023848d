"""Faults of what lies around a plain pass: each is refuted by its law, and named."""

from __future__ import annotations

import pytest
from fault_ports import ANY
from models import failed_laws, judged

from verify.faults.catalogue import CATALOGUE
from verify.findings import Verdict

FAMILIES = ("loss", "cache", "batch", "precision")
FAULTS = [name for name, fault in CATALOGUE.items() if fault.family in FAMILIES]


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_refuted_by_its_law_and_named(name: str) -> None:
    report = judged(ANY + name)
    assert report.verdict is Verdict.REFUTED
    assert CATALOGUE[name].law in failed_laws(report)
    assert report.explained_by == (name,), report.causes
    if CATALOGUE[name].family not in ("batch", "precision"):  # which show at the sites as well
        assert report.first_divergence is None
