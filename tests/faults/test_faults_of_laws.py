"""Faults of what lies around a plain pass: each is refuted by its law, and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fault_ports import ANY, SHARED, SOURCE, injected, judged
from models import INPUTS, failed_laws, finding

from gpt_verify.diagnosis.left_over import left_over
from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.gradient.injection import pulled
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.process.restored import restored

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
    """A hidden copy is never trained: the law by gradient sees an end that is detached.

    What resizes wte leaves a head of its own as it was.
    """
    report = judged(ANY + name)
    (cause,) = report.causes
    assert cause.fault == name
    named = {f.fault for f in report.findings if f.fault}
    entailed = set(CATALOGUE[name].entails)
    assert named & entailed and named <= {name, *entailed}
    for law in (f.id for f in report.findings if f.fault in entailed):
        assert law in cause.where
    if name in ("tying-head-hidden", "tying-lookup-hidden"):
        assert named == {name, *entailed}
        assert {"tying.storage", "tying.gradient"} <= set(cause.where)
    if CATALOGUE[name].law != "tying.value":  # what is wrong in the forward pass needs a proof
        assert left_over(report, None) == []


#: Every law of tying or of derivatives fails with one of these: a mistake in the backward pass in
#: all layers, one that leaks what comes later, and each kind of tie that is none.
BROUGHT = ("gradient-gelu-erf", "gradient-mask-missing", "head-copied", "head-detached")
BROUGHT += ("tying-lookup-detached", "tying-by-data")


@pytest.mark.parametrize("name", BROUGHT)
def test_what_a_fault_brings_with_it_is_not_left_over(name: str) -> None:
    report = judged(ANY + name)
    assert report.explained_by == (name,)
    assert left_over(report, None) == []


def test_what_it_does_not_bring_with_it_is() -> None:
    """A head that is detached says nothing of a lookup that is trained wrongly."""

    def build() -> TorchModule:
        port = injected(SOURCE, ("head-detached", range(SOURCE.config.n_layer)))
        wrap(port.module, "embed", _third_channel)
        return port

    report = judge("two", SOURCE, INPUTS, None, "cpu", Silent(), build=build, shared=SHARED)
    assert report.explained_by == ("head-detached",)
    assert {(f.id, f.site) for f in left_over(report, None)} >= {("gradient", "embed")}


def _third_channel(self: Any, right: Any, *given: Any) -> Any:
    rows = right(*given)
    factors = torch.ones(rows.shape[-1], dtype=rows.dtype)
    factors[3] = 1.5
    return pulled(rows, lambda d, x: d * factors, rows)


def test_a_trap_is_no_fault() -> None:
    """A port that derives no positions from a mask, and takes them, is right; it says so."""
    report = judged(ANY + "padding-positions-counted")
    assert report.verdict is Verdict.VERIFIED
    assert "pass position_ids" in finding(report, "positions.padding").message
    assert report.explained_by == ()
