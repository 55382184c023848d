"""Which experts a token is given may hang on rounding: the noise of what follows knows it."""

from __future__ import annotations

import numpy as np
from families import family, in_memory

from gpt_verify.graph.cascade import NEAR, Lockstep, given_to_others
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights

CONFIG = family("mixtral")
EXPERTS = CONFIG.keys.experts
assert EXPERTS is not None


def test_the_first_run_gives_near_tokens_to_others() -> None:
    rng = np.random.default_rng(0)
    apart_T, deviation = np.array([1.0, 2.0, 0.01, 0.0]), 0.01
    router_TE = np.zeros((4, EXPERTS.count))
    router_TE[:, : EXPERTS.chosen] = 10.0
    router_TE[:, EXPERTS.chosen - 1] = apart_T
    noisy = router_TE + deviation * rng.standard_normal((40, *router_TE.shape)) / np.sqrt(2)
    made = given_to_others(CONFIG, router_TE, noisy.reshape(-1, EXPERTS.count))
    made = made.reshape(noisy.shape)
    assert np.array_equal(made[1:], noisy[1:])
    near = apart_T <= NEAR * deviation
    assert near.tolist() == [False, False, True, True]
    assert np.array_equal(made[0, ~near], noisy[0, ~near])
    last, out = EXPERTS.chosen - 1, EXPERTS.chosen
    assert (made[0, near, out] > made[0, near, last]).all()
    assert np.array_equal(np.sort(made[0], axis=-1), np.sort(noisy[0], axis=-1))


def test_a_port_that_chose_otherwise_is_within_the_noise() -> None:
    """All routers tie, so that each token may go to any two."""
    source = in_memory("mixtral")
    tensors = dict(source.tensors)
    for name in [n for n in tensors if n.endswith("mlp/router/w")]:
        tensors[name] = np.zeros_like(tensors[name])
    tokens_T = np.arange(9)
    tied = Lockstep(CONFIG, DeclaredWeights(tensors, FLOAT32), FLOAT32, tokens_T)
    known = tied.value("h.0.mlp.out")
    assert known is not None
    exact, noise = known
    assert np.sqrt(np.mean(noise**2)) > 1e-2 * np.sqrt(np.mean(exact**2))


def test_where_no_token_is_near_the_noise_is_that_of_rounding() -> None:
    source = in_memory("mixtral")
    lockstep = Lockstep(CONFIG, DeclaredWeights(source.tensors, FLOAT32), FLOAT32, np.arange(9))
    known = lockstep.value("h.0.mlp.out")
    assert known is not None
    exact, noise = known
    assert np.sqrt(np.mean(noise**2)) < 1e-5 * np.sqrt(np.mean(exact**2))
