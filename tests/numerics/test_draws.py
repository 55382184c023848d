"""The noise floor of few numbers, or of numbers that are all alike, is no accident."""

from __future__ import annotations

import numpy as np
import pytest
from models import checkpoint
from strategies import Model

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Status
from gpt_verify.graph.cascade import Lockstep
from gpt_verify.graph.derivatives import derivatives
from gpt_verify.graph.differences import STEP, difference
from gpt_verify.graph.directions import WTE_READERS, draw
from gpt_verify.inputs import given, seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.numerics.draws import FOR_POSITIONS, OBSERVATIONS, Rounding, draws, perturbations
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32, Precision
from gpt_verify.numerics.scores import limit_max
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference import Config, parameter_count

#: Correct ports that one draw of the noise had refuted: one token, or few channels.
REFUTED_ONCE = [
    (Model((44, 2, 2, 2, 4), "tiny_variance", 158), 1),
    (Model((51, 8, 12, 2, 6), "ordinary", 46), 1),
    (Model((5, 1, 24, 3, 6), "large_channels", 154), 1),
    (Model((71, 10, 24, 3, 4), "equal_rows", 170), 10),
    (Model((51, 17, 9, 3, 4), "constant_rows", 162), 12),
    (Model((29, 18, 2, 2, 5), "constant_rows", 92), 8),
    (Model((32, 13, 12, 2, 4), "huge_scores", 44), 1),
    (Model((36, 19, 2, 1, 6), "huge_scores", 127), 1),
]


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16, FLOAT16], ids=lambda p: p.name)
def test_it_rounds_to_the_format_and_moves_by_what_that_may_do(precision: Precision) -> None:
    values = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    perturbed = Rounding(precision, 1)(values)
    np.testing.assert_array_equal(perturbed, precision.round(perturbed))
    error = np.abs(perturbed.astype(np.float64) - values) / np.abs(values)
    # Perturbed by at most u in float32, which rounds twice, and rounded by at most u.
    assert error.max() <= (1 + precision.u) ** 2 * (1 + FLOAT32.u) ** 2 - 1
    # A move of u ξ that is rounded away half of the time would have a root mean square of 0.41 u.
    assert np.sqrt(np.mean(error**2)) > 0.4 * precision.u


def test_equal_numbers_are_perturbed_apart() -> None:
    rng = np.random.default_rng(0)
    n = 1000
    perturbed = perturbations(np.ones(n), FLOAT32, rng) / FLOAT32.u
    # ξ² has the mean 1/3 and the variance 4/45; ξ has the mean 0 and the variance 1/3.
    assert abs(np.mean(perturbed**2) - 1 / 3) <= limit_max(1) * np.sqrt(4 / 45 / n)
    assert abs(perturbed.mean()) <= limit_max(1) * np.sqrt(1 / 3 / n)


@pytest.mark.parametrize("length", [1, 2, 5, 11, 12, 13])
def test_there_are_enough_observations(length: int) -> None:
    config = Config(n_vocab=11, n_ctx=13, n_embd=6, n_head=2, n_layer=2)
    source: Checkpoint = checkpoint(config)
    weights = DeclaredWeights(source.tensors, FLOAT32)
    tokens_T = seeded(config, length, 0).tokens[0]
    lockstep = Lockstep(config, weights, FLOAT32, tokens_T)
    known = lockstep.value("h.1.ln_2")
    assert known is not None
    exact_TD, noise_RTD = known
    count = draws(length, length * parameter_count(config))
    assert noise_RTD.shape == (count, *exact_TD.shape)
    assert noise_RTD.shape[0] * length >= OBSERVATIONS
    assert len(np.unique(noise_RTD, axis=0)) == len(noise_RTD)
    for _, exact_TV, noise_RTV in lockstep.logits():
        assert noise_RTV.shape == (count, *exact_TV.shape)


def test_the_same_tokens_have_the_same_noise() -> None:
    source = checkpoint()
    weights = DeclaredWeights(source.tensors, FLOAT32)
    tokens_T = seeded(source.config, 5, 0).tokens[0]
    found = []
    for _ in range(2):
        lockstep = Lockstep(source.config, weights, FLOAT32, tokens_T)
        known = lockstep.value("h.0.resid_post")
        assert known is not None
        tiles = list(lockstep.logits())
        found.append((known[1], np.concatenate([noise for _, _, noise in tiles], axis=-1)))
    for first, again in zip(*found, strict=True):
        np.testing.assert_array_equal(first, again)


def test_a_position_that_hangs_on_one_score() -> None:
    """A sequence in which two scores are nearly alike: one draw had refuted the cache."""
    source = Model((257, 15, 21, 3, 3), "huge_scores", 8387).checkpoint()
    inputs = [given(source.config, [236] * 8)]
    report = judge("huggingface-eager", source, inputs, None, "cpu", Silent(), laws=("cache",))
    (cache,) = (f for f in report.findings if f.id == "cache")
    assert cache.status is Status.PASSED, cache.message


def test_what_large_models_are_spared() -> None:
    default, large = 1_082_496, 124_439_808
    assert draws(256, 256 * default, FOR_POSITIONS) == OBSERVATIONS
    assert draws(1024, 1024 * large, FOR_POSITIONS) == 1
    assert draws(8, 8 * large, FOR_POSITIONS) > draws(8, 8 * large) == 2
    assert draws(256, 256 * default) == 1
    assert draws(64, 64 * 1000) == OBSERVATIONS


@pytest.mark.parametrize(("model", "length"), REFUTED_ONCE, ids=str)
@pytest.mark.parametrize("port", ["huggingface-eager", "huggingface-sdpa"])
def test_no_correct_port_is_refuted(model: Model, length: int, port: str) -> None:
    source = model.checkpoint()
    inputs = [seeded(source.config, length, model.seed)]
    report = judge(port, source, inputs, None, "cpu", Silent(), laws=("gradient",))
    assert report.error is None
    assert [f for f in report.findings if f.status is Status.FAILED] == []
    judged = {f.id for f in report.findings if f.status is Status.PASSED}
    assert judged >= {"activations.cascaded", "logits"}


def test_a_step_that_jumps_over_a_softmax_is_made_smaller() -> None:
    """At the first step nothing of the derivative is right, and what is left of it looks exact."""
    source = Model((3, 7, 2, 2, 1), "huge_scores", 169).checkpoint()
    weights, config = DeclaredWeights(source.tensors, FLOAT16), source.config
    tokens = np.random.default_rng([0, 3, 7, *b"gradient"]).integers(0, 3, (3, 7))
    drawn = draw(config, np.random.default_rng([0, *b"gradient"]))
    ends = [direction for direction in drawn if direction.sites != WTE_READERS]
    found = difference(config, weights, tokens, ends)
    assert found.step < STEP and found.truncation < 1e-6 * abs(found.value)
    # And so the backward pass, which is held to it, is believed.
    assert len(derivatives(config, weights, tokens, ends, FLOAT16)) == len(ends)
