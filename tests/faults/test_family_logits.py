"""Faults of the families in ports that show nothing but logits, and correct ports that do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from families import Sources
from models import failures, finding

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.diagnosis.deviations import Deviations
from gpt_verify.diagnosis.logits import LEAST, deviations_kept
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.graph.run import run
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.numerics.precision import BFLOAT16, FLOAT32, FLOAT64
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Dtype, Port
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.power.injection import LOGITS, ONE_LAYER, Injection, logits_only, port_with
from gpt_verify.power.trial import Bench, short_inputs

#: A family with a cap on its logits and two kinds of layers, and one with experts; of each, faults
#: of most of its parts.
PLANTED = [
    *(("gemma2", name) for name in ("cap-scores-missing", "cap-logits-missing", "gelu-erf")),
    *(("gemma2", name) for name in ("rms-gain-stored", "window-one-more", "rotary-theta-lost")),
    *(("mixtral", name) for name in ("router-not-renormalised", "grouped-tiled")),
]


@pytest.fixture(scope="module")
def benches(sources: Sources) -> Iterator[Callable[[str], Bench]]:
    """What the faults do to the logits of one family is computed once."""
    made: dict[str, Bench] = {}

    def bench(name: str) -> Bench:
        if name not in made:
            made[name] = Bench(sources(name), 0)
        return made[name]

    with deviations_kept():
        yield bench


@pytest.mark.parametrize(("of", "name"), PLANTED, ids=lambda word: str(word))
def test_a_fault_is_named(benches: Callable[[str], Bench], of: str, name: str) -> None:
    bench = benches(of)
    layers = tuple(range(bench.checkpoint.config.n_layer))
    outcome = bench.fault(Injection(name, LOGITS, layers))
    assert outcome.detected, outcome.message
    assert outcome.explained, (outcome.explained_by, outcome.instead)
    assert not outcome.wrong_names
    assert (outcome.floors or 0) > 1
    assert outcome.sites == ()


def reported(source: Checkpoint, build: Callable[[], Port]) -> PortReport:
    inputs = short_inputs(source, 0)[:1]
    return judge("port", source, inputs, None, "cpu", Silent(), build=build, laws=())


def shown_logits(source: Checkpoint, dtype: Dtype | None = None) -> Port:
    return logits_only(huggingface(source, "eager", dtype))


@pytest.mark.parametrize("of", ["mixtral", "gemma2"])
def test_none_is_seen_in_a_correct_port(benches: Callable[[str], Bench], of: str) -> None:
    source = benches(of).checkpoint
    report = reported(source, lambda: shown_logits(source))
    assert report.verdict is Verdict.VERIFIED, failures(report)
    seen = finding(report, "logits.faults", "logits")
    assert seen.status is Status.PASSED, seen.message
    assert report.explained_by == ()


def test_one_in_one_layer_is_named_with_its_layer(benches: Callable[[str], Bench]) -> None:
    """A fault of the families alone, which GPT-2 cannot have."""
    source, fault = benches("gemma2").checkpoint, CATALOGUE["gated-both-activated"]
    assert fault.inject is None
    injection = Injection(fault.name, ONE_LAYER, (1,))
    report = reported(source, lambda: logits_only(port_with(fault, injection, source)))
    (cause,) = report.causes
    assert (cause.fault, cause.layers) == (fault.name, (1,))


# Experts: rounding alone may choose another one


def test_in_half_precision_rounding_may_choose_other_experts(sources: Sources) -> None:
    """They are said to be so, and nothing is guessed."""
    source = sources("mixtral")
    report = reported(source, lambda: shown_logits(source, "bfloat16"))
    seen = finding(report, "logits.faults", "logits")
    assert seen.status is Status.NOT_EXAMINED
    assert "rounding may choose other experts in" in seen.message


def test_a_sequence_is_left_out_where_two_experts_are_as_good(sources: Sources) -> None:
    """Two experts whose rows of the router are equal are chosen by chance."""
    source = sources("mixtral")
    config = source.config
    rng = np.random.default_rng(0)
    tokens_ST = rng.integers(0, config.n_vocab, (2 * LEAST, 7))
    clear = Deviations(config, DeclaredWeights(source.tensors, FLOAT32), tokens_ST, 0)
    assert clear.decided(FLOAT64).all()
    assert clear.decided(FLOAT32).sum() > LEAST
    assert not clear.decided(BFLOAT16).all()
    tensors = {name: np.array(value) for name, value in source.tensors.items()}
    router = tensors["h1/mlp/router/w"]
    router[:] = router[:, :1]
    weights = DeclaredWeights(replace(source, tensors=tensors).tensors, FLOAT32)
    tied = Deviations(config, weights, tokens_ST, 0)
    assert not tied.decided(FLOAT64).any()


def test_the_head_is_sampled_with_its_bias_and_its_cap(sources: Sources) -> None:
    """The logits that the filter looks at are the model's."""
    for of in ("gemma2", "phi"):
        source = sources(of)
        tokens_ST = np.arange(5)[None]
        weights = DeclaredWeights(source.tensors, FLOAT32)
        deviations = Deviations(source.config, weights, tokens_ST, 0)
        lookup = source.tensors.__getitem__
        *_, (_, logits_TV) = run(lookup, source.config, tokens_ST[0], {})
        assert np.abs(deviations.error(logits_TV[None])).max() < 1e-12 * np.abs(logits_TV).max()
