"""Every fault that acts at a site is refuted by its law, found where it is, and named; injected
into all layers and in one, with every site shown and with nothing but logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from fault_ports import SHARED, SOURCE, injected
from models import CONFIG, batch, checkpoint, failed, failures

from gpt_verify.diagnosis.deviations import Deviations
from gpt_verify.diagnosis.filter import Filtered
from gpt_verify.diagnosis.layers import sorted_wrongly
from gpt_verify.diagnosis.logits import LENGTH, SEQUENCES
from gpt_verify.faults.fault import Fault
from gpt_verify.faults.model import Options
from gpt_verify.findings import PortReport, Verdict
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.inputs import Input, seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.activations.check import SiteComparison
from gpt_verify.laws.catalogue import CATALOGUE, faults_of
from gpt_verify.laws.table import CHECKS
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference import Config
from gpt_verify.sites import sites

FAMILIES = ("gelu", "norm", "attention", "linear", "residual", "embeddings", "head")
FAULTS = [f for f in CATALOGUE.values() if f.family in FAMILIES and f.inject is not None]
ACTING = [f for f in FAULTS if f.sites.operations or f.sites.fitted]
LAYERS = tuple(range(CONFIG.n_layer))

#: The first token and the last stand in it, and it is as long as it may be.
FULL = Input("full", seeded(CONFIG, CONFIG.n_ctx, 0).tokens.copy())
FULL.tokens[0, [3, 11]] = 0, CONFIG.n_vocab - 1
INPUTS = [seeded(CONFIG, 1, 0), batch(CONFIG, 2, 11), FULL]

#: Two faults that are one function in the tiny model's layer 1: √(2 · 6) is √24 / √2.
SAME = {
    ("attention-scale-by-layer", (1,)): "attention-scale-by-width",
    ("attention-scale-by-width", (1,)): "attention-scale-by-layer",
}


def forms(faults: Sequence[Fault]) -> list[Any]:
    """Each in all layers, and in layer 1 where it can be in one."""
    return [
        pytest.param(fault, layers, id=f"{fault.name}, {where}")
        for fault in faults
        for layers, where in ((LAYERS, "everywhere"), ((1,), "in layer 1"))
        if fault.layered or layers is LAYERS
    ]


def judged(fault: Fault, layers: Sequence[int], *laws: str, **options: Any) -> PortReport:
    return judge(
        fault.name,
        SOURCE,
        INPUTS,
        None,
        "cpu",
        Silent(),
        build=lambda: injected(SOURCE, (fault.name, layers), options=Options(**options)),
        laws=laws,
        shared=SHARED,
    )


def right_sites(fault: Fault, layers: Sequence[int]) -> set[str]:
    """Where it acts, and what reads that: a port need not show the sum or the norm itself."""
    table = sites(CONFIG)
    overridden = set(fault.overrides(CONFIG, layers)) or {"logits"}
    return overridden | {s.name for s in table.values() if overridden & set(s.inputs)}


@pytest.mark.parametrize(("fault", "layers"), forms([f for f in ACTING if f.law]))
def test_it_is_refuted_where_it_is_and_named(fault: Fault, layers: tuple[int, ...]) -> None:
    report = judged(fault, layers)
    assert report.verdict is Verdict.REFUTED
    assert failed(report, "architecture")
    assert report.first_divergence in right_sites(fault, layers)
    same = SAME.get((fault.name, layers))
    if same is None:
        assert report.explained_by == (fault.name,)
    else:
        (cause,) = report.causes
        assert {cause.fault, *cause.instead} == {fault.name, same}


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.law is None], ids=lambda f: f.name)
def test_what_changes_nothing_is_verified(fault: Fault) -> None:
    report = judged(fault, LAYERS, *(law.id for law in CHECKS))
    assert report.verdict is Verdict.VERIFIED
    assert not failures(report)


#: Faults that draw at random, or that only a law sees: which law, and where it shows first.
BY_LAW = {
    "attention-dropout": ("determinism.mode", "h.0.attn.mix"),
    "residual-dropout": ("determinism.mode", "h.0.ln_2"),
    "embeddings-dropout": ("determinism.mode", "h.0.ln_1"),
    "head-untied": ("tying.value", "logits"),
    "head-noisy": ("tying.value", "logits"),
    "head-copied": ("tying.storage", "logits"),
    "head-detached": ("tying.gradient", "logits"),
}


@pytest.mark.parametrize("name", BY_LAW)
def test_it_is_named_by_its_law(name: str) -> None:
    law, site = BY_LAW[name]
    fault = CATALOGUE[name]
    assert fault.law is not None
    report = judged(fault, LAYERS, law)
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == site
    assert law.startswith(fault.law)
    assert law in {f.id for f in failures(report)}
    assert report.explained_by == (name,)


def test_no_fault_is_left_out() -> None:
    acting = {f.name for f in ACTING} | {f.name for f in FAULTS if f.law is None}
    assert {f.name for f in FAULTS} == acting | set(BY_LAW) | {"linear-layers-string-sorted"}


HIDDEN_INSIDE = [
    f
    for f in CATALOGUE.values()
    if f.family == "attention" and f.name.startswith(("attention-scale", "attention-mask"))
]


@pytest.mark.parametrize("fault", HIDDEN_INSIDE[:2], ids=lambda f: f.name)
def test_inside_a_fused_attention(fault: Fault) -> None:
    """Scores and pattern are not shown: the mix is explained, with the fault where it acts."""
    report = judged(fault, LAYERS, fused=True)
    assert report.first_divergence == "h.0.attn.mix"
    assert report.explained_by == (fault.name,)


# From logits alone

#: Faults that logits do not show: by a constant for each position, by nothing at all, or (in one
#: layer of the tiny model) by less than rounding. And two values of one kind that these logits do
#: not tell apart.
BLIND = {"head-centred", "head-log-softmax", "attention-key-bias-dropped"}
BELOW = {"norm-eps-1e-6", "norm-eps-1e-12", "norm-eps-0", "norm-unbiased-outside"}


@cache
def deviations() -> tuple[Deviations, Any]:
    rng = np.random.default_rng([0, SEQUENCES, CONFIG.n_ctx])
    tokens_ST = rng.integers(0, CONFIG.n_vocab, (SEQUENCES, min(LENGTH, CONFIG.n_ctx)))
    tokens_ST[:, 6], tokens_ST[:, 9] = 0, CONFIG.n_vocab - 1
    made = Deviations(CONFIG, DeclaredWeights(SOURCE.tensors, FLOAT32), tokens_ST, 0)
    return made, tokens_ST


def filtered(fault: Fault, layers: Sequence[int]) -> Filtered:
    """What the filter finds, as ``gpt_verify.diagnosis.logits`` asks it."""
    known, tokens_ST = deviations()
    port = injected(SOURCE, (fault.name, layers))
    error_SN = known.error(np.stack([port.logits(row[None])[0] for row in tokens_ST]))
    candidates = []
    for single in (False, True):
        with np.errstate(all="ignore"):
            candidates += [
                c for f in faults_of(CONFIG).values() for c in known.candidates(f, single)
            ]
            floor = partial(known.floor, precision=FLOAT32)
            found = known.filter(FLOAT32).find(error_SN, candidates, LIMIT_FLOORS, floor)
        if found.matches:
            break
    return found


@pytest.mark.parametrize(
    ("fault", "layers"), forms([f for f in ACTING if f.law and f.sites.operations])
)
def test_it_is_named_from_logits_alone(fault: Fault, layers: tuple[int, ...]) -> None:
    found = filtered(fault, layers)
    names = {m.candidate.fault for m in found.matches}
    instead = {other.split(" in ")[0] for m in found.matches for other in m.instead}
    if fault.name in BLIND:
        assert found.before < LIMIT_FLOORS
        assert not names
    elif fault.name in BELOW and layers != LAYERS:
        assert names <= {fault.name}
    else:
        assert len(names) == 1
        assert fault.name in names | instead


# Eleven layers


def test_layers_sorted_as_strings() -> None:
    """The eleventh comes third, and what is computed after it comes too late."""
    deep = Config(n_vocab=31, n_ctx=7, n_embd=12, n_head=3, n_layer=11)
    source, name = checkpoint(deep), "linear-layers-string-sorted"
    weights = DeclaredWeights(source.tensors, FLOAT32)
    for layers, named in ((range(deep.n_layer), [name]), ((), [])):
        port = injected(source, *([(name, layers)] if layers else []))
        comparison = SiteComparison(deep, weights, FLOAT32, FLOAT32, cascaded=False)
        tokens = np.arange(5)[None]
        comparison.begin(tokens)
        port.activations(tokens, comparison)
        causes = sorted_wrongly({"activations.local": comparison}, deep)
        assert [cause.fault for cause in causes] == named
        assert next(iter(comparison.late), None) == ("h.2.ln_1" if named else None)
