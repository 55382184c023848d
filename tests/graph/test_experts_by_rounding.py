"""Which experts a token is given may hang on rounding: a port is compared from the tokens on as far
as to there."""

from __future__ import annotations

import numpy as np
from families import family, in_memory, keyed

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS, Lockstep, as_noisy_from, decided
from gpt_verify.laws.logits.check import LogitsComparison
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.sites import before_head

CONFIG = family("mixtral")


def routers(apart_T: list[float]) -> np.ndarray:
    """Logits whose last chosen and first left out are so far apart."""
    experts = CONFIG.keys.experts
    assert experts is not None
    made = np.zeros((len(apart_T), experts.count))
    made[:, : experts.chosen] = 10.0
    made[:, experts.chosen - 1] = np.array(apart_T)
    return made


def test_the_first_token_that_is_near_ends_it() -> None:
    noise = np.full((3, 4, CONFIG.keys.experts.count if CONFIG.keys.experts else 0), 0.01)
    limit = LIMIT_FLOORS * 0.01
    assert decided(CONFIG, routers([1.0, 1.0, 1.0, 1.0]), noise) == 4
    assert decided(CONFIG, routers([1.0, 1.0, 0.9 * limit, 1.0]), noise) == 2
    assert decided(CONFIG, routers([1.0, 1.1 * limit, 1.0, 1.0]), noise) == 4
    assert decided(CONFIG, routers([0.0, 1.0, 1.0, 1.0]), noise) == 0
    assert decided(family("llama"), np.zeros((4, 1)), noise) == 4


def test_what_counts_is_as_it_was() -> None:
    rng = np.random.default_rng(0)
    error, noise = rng.normal(size=(2, 5, 5)), rng.normal(size=(3, 2, 5, 5))
    made = as_noisy_from(3, error, noise)
    assert np.array_equal(made[:, :3], error[:, :3])
    assert np.array_equal(made[:, 3:], noise[0][:, 3:])
    assert as_noisy_from(5, error, noise) is error


def compared(first_wrong: int, precision: Precision, tied: bool) -> tuple[int, Finding]:
    """Logits that are wrong from a position on; of a model whose routers tie, too."""
    source = in_memory("mixtral")
    tensors = dict(source.tensors)
    if tied:
        for name in [n for n in tensors if n.endswith("mlp/router/w")]:
            tensors[name] = np.zeros_like(tensors[name])
    weights, tokens = DeclaredWeights(tensors, precision), np.arange(9)[None]
    lockstep = Lockstep(CONFIG, weights, precision, tokens[0])
    logits = np.concatenate([exact for _, exact, _ in lockstep.logits()], axis=-1)
    logits = logits.astype(np.float32)
    logits[first_wrong:] += 1.0 + np.arange(logits.shape[1], dtype=np.float32)
    comparison = LogitsComparison(CONFIG, weights, precision)
    comparison.add(tokens, logits[None])
    (finding,) = comparison.findings()
    return lockstep.decided(before_head(CONFIG)), finding


def test_where_nothing_is_decided_nothing_is_said() -> None:
    kept, finding = compared(0, FLOAT32, tied=True)
    assert kept == 0
    assert finding.status is Status.NOT_EXAMINED
    assert "rounding may choose other experts for the first token" in finding.message


def test_where_all_is_decided_everything_counts() -> None:
    kept, finding = compared(8, FLOAT32, tied=False)
    assert kept == 9
    assert finding.status is Status.FAILED
    kept, finding = compared(9, FLOAT32, tied=False)
    assert finding.status is Status.PASSED


def test_a_model_that_takes_all_its_experts_is_always_decided() -> None:
    experts = CONFIG.keys.experts
    assert experts is not None
    every = keyed(CONFIG, experts=type(experts)(experts.count, experts.count))
    assert decided(every, np.zeros((4, experts.count)), np.ones((1, 4, experts.count))) == 4
