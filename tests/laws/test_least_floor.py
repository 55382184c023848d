"""Of a large model no floor is measured where two versions are within any: the verdicts stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from families import family, in_memory
from models import CONFIG, checkpoint
from subjects import hold, port, subject

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.floor import least_floor, measure_floor
from gpt_verify.laws import subject as subjects
from gpt_verify.laws.agreement import LIMIT_PAIR, Agreement, at_most
from gpt_verify.laws.subject import Subject
from gpt_verify.laws.symmetry import trial
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.reference import logits as reference_logits

DTYPES = ("float64", "float32", "bfloat16", "float16")
FAMILIES = ("llama", "gemma2", "bloom", "phi", "opt", "gptj")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a large one."""
    monkeypatch.setattr(subjects, "LARGE", 0)


def sources() -> dict[str, Checkpoint]:
    found = {"gpt2": checkpoint(scale=1.5), "quiet": checkpoint(scale=0.01)}
    return found | {name: in_memory(name, family(name)) for name in FAMILIES}


@pytest.mark.parametrize("name", sources())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_floor_is_at_least_that(name: str, dtype: str) -> None:
    source, precision = sources()[name], PRECISIONS[dtype]
    config, weights = source.config, DeclaredWeights(source.tensors, precision)
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, 7)
    exact = reference_logits(Widened(weights), config, tokens)
    least = least_floor(config, precision, (exact**2).mean(axis=-1))
    measured = measure_floor(config, weights, precision, tokens).rms_T
    assert np.isfinite(measured).all()
    assert (least > 0).all()
    assert (least <= measured).all()


def moved(logits_TV: Any, by: float, spike: bool) -> Any:
    """By so much of their size, everywhere or in one logit."""
    size = float(np.sqrt((logits_TV.astype(np.float64) ** 2).mean()))
    signs = np.random.default_rng(1).choice((-1.0, 1.0), logits_TV.shape)
    if spike:
        signs[:] = 0.0
        signs[-1, 5] = 1.0
    return (logits_TV + by * size * signs).astype(logits_TV.dtype)


@pytest.mark.parametrize("spike", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_two_versions_are_apart_as_they_were(
    dtype: Any, spike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far: the verdict is that of the measured floor, and the distance is no less."""
    judged = subject(port(dtype=dtype))
    tokens = judged.tokens(1, CONFIG.n_ctx)
    right = judged.port.logits(tokens)[0]
    without = 0
    for power in range(4, 40):
        got = moved(right, judged.precision.u * 2.0 ** (power / 2 - 4), spike)
        small, other = Agreement(judged), Agreement(judged)
        measured = small.compare("moved", got, right, tokens[0])
        with monkeypatch.context() as patch:
            patch.setattr(subjects, "LARGE", 0)
            found = other.compare("moved", got, right, tokens[0])
        assert small.holds() == other.holds(), power
        # Sums of squares over the vocabulary, in another order of the operations.
        assert (found >= measured * (1 - 2.0**-40)).all()
        without += bool((at_most(judged, got, right) <= LIMIT_PAIR).all() and (got != right).any())
    assert 5 < without < 30  # both sides of the limit


def test_what_is_close_needs_no_floor(large: None) -> None:
    judged = subject(port())
    tokens = judged.tokens(1, CONFIG.n_ctx)
    right = judged.port.logits(tokens)[0]
    agreement = Agreement(judged)
    agreement.compare("moved", moved(right, judged.precision.u, False), right, tokens[0])
    assert agreement.unequal and agreement.holds()
    assert not judged.weights.memo
    agreement.compare("moved", moved(right, 1e-3, False), right, tokens[0])
    assert not agreement.holds()
    assert judged.weights.memo


def test_logits_of_nothing_have_no_least_floor(large: None) -> None:
    judged = subject(port())
    tokens = judged.tokens(1, 4)
    zero = np.zeros((4, CONFIG.n_vocab), np.float32)
    assert (at_most(judged, zero, zero + np.float32(1e-9)) == np.inf).all()
    assert (at_most(judged, zero, -zero) == 0).all()
    # One that is wrong may be of any size, and makes nothing of the difference.
    assert (at_most(judged, zero + np.float32(1e9), zero + np.float32(1)) > LIMIT_PAIR).all()
    assert not Agreement(judged).compare("zeros", -zero, zero, tokens[0]).any()


@pytest.mark.parametrize("finer", [1.0, 2.0**29])
def test_the_reference_is_as_far_as_it_was(finer: float, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = subject(port())
    tokens = judged.tokens(1, CONFIG.n_ctx)[0]
    exact = reference_logits(Widened(judged.weights), CONFIG, tokens)
    without = 0
    for power in range(4, 40):
        difference = moved(exact, judged.precision.u / finer * 2.0 ** (power / 2 - 4), False)
        difference -= exact
        small = judged.floors_off(difference, exact, tokens, finer=finer)
        fresh = fresh_of(judged)
        with monkeypatch.context() as patch:
            patch.setattr(subjects, "LARGE", 0)
            found = fresh.floors_off(difference, exact, tokens, finer=finer)
        assert (small <= LIMIT_FLOORS) == (found <= LIMIT_FLOORS), power
        assert found >= small * (1 - 2.0**-40)
        without += not fresh.weights.memo
    assert 5 < without < 30
    with monkeypatch.context() as patch:
        patch.setattr(subjects, "LARGE", 0)
        difference[0, 0] = np.nan
        assert judged.floors_off(difference, exact, tokens, finer=finer) == np.inf


def fresh_of(judged: Subject) -> Subject:
    """The same, of which nothing was measured yet."""
    weights = DeclaredWeights(judged.weights.tensors, judged.precision)
    return replace(judged, weights=weights, memo={})


LAWS = (
    "cache",
    "batch",
    "batch.sizes",
    "lengths",
    "positions.limit",
    "gradient",
    "positions.padding",
)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_correct_large_port_holds_the_laws(law: str, attention: str, large: None) -> None:
    found = hold(law, port(attention=attention))
    assert {finding.status for finding in found} == {Status.PASSED}, found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rewriting_is_within_its_floor(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rewritten weights as well: the finding is the same, and no floor is measured for it."""
    small = hold("symmetry.scale", port(dtype=dtype))
    monkeypatch.setattr(subjects, "LARGE", 0)
    monkeypatch.setattr(trial, "symmetry_floor", None)  # not called
    (found,), (measured,) = hold("symmetry.scale", port(dtype=dtype)), small
    assert found.status is measured.status is Status.PASSED, found.message
    assert found.score is not None and measured.score is not None
    assert measured.score * (1 - 2.0**-40) <= found.score <= LIMIT_FLOORS
