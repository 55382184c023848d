"""Damage to a tensor: refuted in that tensor, and explained by its name; without the tensors, in
the logits."""

from __future__ import annotations

import numpy as np
import pytest
from fault_ports import ANY, judged
from models import CONFIG, checkpoint, failures, finding

from gpt_verify.diagnosis.tensors import Difference, explain
from gpt_verify.faults.fault import Corrupt, Fault, Stored, tensors_of
from gpt_verify.faults.weights import bit_flip, int8, rolled, scaled
from gpt_verify.findings import Status, Verdict
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.sites import sites

SOURCE = checkpoint()
FAULTS = {name: fault for name, fault in CATALOGUE.items() if fault.family == "weights"}
#: The single-layer form of those that have one.
PLACES = [f"{name}@{i % CONFIG.n_layer}" for i, (name, f) in enumerate(FAULTS.items()) if f.layered]


def readers(fault: Fault, layers: list[int]) -> list[str]:
    """Sites that read a damaged tensor, in order."""
    names = set(tensors_of(fault.tensors.kinds, layers))
    return [site.name for site in sites(CONFIG).values() if names & set(site.weights)]


@pytest.mark.parametrize("injected", [*FAULTS, *PLACES])
def test_it_is_found_in_its_tensor_and_named(injected: str) -> None:
    name, _, layer = injected.partition("@")
    fault = FAULTS[name]
    layers = [int(layer)] if layer else list(range(CONFIG.n_layer))
    report = judged(ANY + injected)
    assert report.verdict is Verdict.REFUTED
    wrong = {f.site for f in failures(report) if f.id == "weights.values"}
    assert wrong == set(readers(fault, layers))
    assert report.first_divergence == readers(fault, layers)[0]
    assert report.explained_by == (name,), report.causes
    assert set(tensors_of(fault.tensors.kinds, layers)) <= set(report.causes[0].where)
    first = finding(report, "weights.values", report.first_divergence)
    assert f"explained by {name}" in first.message


def changed(name: str, corrupt: Corrupt) -> Difference:
    expected = np.array(SOURCE.tensors[name])
    got = corrupt(Stored(CONFIG, name, expected.copy(), SOURCE.tensors.__getitem__))
    lookup = SOURCE.tensors.__getitem__
    return Difference(name, np.asarray(got, np.float32), expected, lookup, CONFIG)


KINDS = ["wte", "wpe", "h1/attn/c_attn/w", "h1/mlp/c_proj/w", "h1/mlp/c_fc/b", "ln_f/g"]


def strikes(fault: str, tensor: str) -> bool:
    """Whether a tensor can be damaged in this way, and the damage be known for it."""
    rows = ("row-zeroed", "rows-exchanged", "rows-shifted", "int8-channel", "transposed", "random")
    if fault in ("parts-permuted", "heads-interleaved"):
        return "/c_attn/" in tensor
    if fault == "heads-reversed":
        return tensor.endswith("attn/c_attn/w")  # rows of the stream
    if fault == "other-norm":
        return "/ln_1/" in tensor
    if fault == "other-layer":
        return tensor.startswith("h1")
    if fault == "random" and tensor == "wpe":
        return False  # too small to know its distribution
    return not (fault in rows and tensor.endswith(("/b", "/g")))


STRUCK = [
    (fault, tensor)
    for fault in FAULTS
    for tensor in [*KINDS, "h2/ln_1/b", "h0/attn/c_attn/b"]
    if strikes(fault.removeprefix("weights-"), tensor)
]


@pytest.mark.parametrize(("name", "tensor"), STRUCK)
def test_it_is_named_in_any_tensor(name: str, tensor: str) -> None:
    """Also where the catalogue does not inject it; and by no other name."""
    corrupt = FAULTS[name].tensors.corrupt
    assert corrupt is not None
    explanation = explain(changed(tensor, corrupt))
    assert {candidate.fault for candidate in explanation.accepted} == {name}, str(explanation)


@pytest.mark.parametrize("bit", range(32))
def test_every_bit(bit: int) -> None:
    explanation = explain(changed("h1/mlp/c_proj/w", bit_flip(bit)))
    assert explanation.best is not None
    fault, words = (
        ("sign", "the sign")
        if bit == 31
        else ("exponent", f"exponent bit {bit - 23}")
        if bit > 22
        else ("mantissa", f"mantissa bit {bit}")
    )
    (candidate,) = explanation.accepted
    assert candidate.fault == f"weights-{fault}-bit"
    assert candidate.note == f"{words} of element [48, 1]"


@pytest.mark.parametrize("factor", [1.0001, 0.99, 2.0, 24**0.5, -1.0])
def test_the_factor_is_said(factor: float) -> None:
    best = explain(changed("h0/mlp/c_fc/w", scaled(factor))).best
    assert best is not None and best.fault == "weights-scaled"
    assert best.note == f"by {np.float32(factor):.7g}"


@pytest.mark.parametrize(("axis", "words"), [(None, "tensor"), (0, "column"), (1, "row")])
def test_the_scale_of_a_quantisation_is_said(axis: int | None, words: str) -> None:
    best = explain(changed("h2/attn/c_proj/w", int8(axis))).best
    assert best is not None and best.note == f"per {words}"


@pytest.mark.parametrize("rows", [1, -1, 2, -2])
def test_by_how_much_rows_are_shifted_is_said(rows: int) -> None:
    best = explain(changed("wpe", rolled(rows))).best
    assert best is not None and str(best) == f"weights-rows-shifted (rows by {rows})"


@pytest.mark.parametrize("tensor", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_of_another_model_nothing_is_said(tensor: str, seed: int) -> None:
    """Not all that is unrelated is an initialisation. (A synthetic checkpoint is drawn at random
    too, wte by chance with nearly the scale of ``torch.nn.Embedding``, hence another one.)"""
    other = checkpoint(seed=seed + 1, scale=1.4).tensors[tensor]
    assert explain(changed(tensor, lambda t: other)).best is None


@pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if not f.tensors.localised])
def test_it_is_named_from_logits_alone(name: str) -> None:
    report = judged(f"{ANY}logits {name}")
    assert report.verdict is Verdict.REFUTED
    (cause,) = report.causes
    # Some are one function with the fault of an operation: from logits, either says it.
    assert name in (cause.fault, *cause.instead), report.causes


@pytest.mark.parametrize("name", ["weights-int8-channel", "weights-other-norm", "weights-scaled"])
def test_in_one_layer_too(name: str) -> None:
    report = judged(f"{ANY}logits {name}@1")
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == (name,), report.causes
    (cause,) = report.causes
    assert cause.note == "layer 1"


@pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if f.tensors.localised])
def test_one_place_is_not_guessed_from_logits(name: str) -> None:
    report = judged(f"{ANY}logits {name}")
    assert report.explained_by == ()
    if report.verdict is Verdict.REFUTED:
        assert "unexplained" in finding(report, "logits", "logits").message
    else:
        assert finding(report, "logits.faults", "logits").status is Status.PASSED
