"""What the tests of the oracle share: tiny models that hide no transpose, and one comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.reference import Config, forward

#: No two of T, D, H, K, V, P, 3 D and 4 D are equal.
CONFIG = Config(n_vocab=11, n_ctx=7, n_embd=12, n_head=3, n_layer=2)
TOKENS = np.array([3, 10, 0, 3, 7])

#: Relative, in the Euclidean norm: what independent float64 computations of one function must agree
#: to. A definition, not a tolerance that was found: what agrees to twelve digits at every site is
#: called the same function. Rounding takes three or four of the sixteen digits of tiny models with
#: ordinary weights; where a model amplifies it, ``rounding.Noise`` measures by how much.
RELATIVE = 1e-12

#: Time means nothing on a shared machine.
few = settings(max_examples=25, deadline=None)


def weights_of(config: Config, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Every tensor in float64, so that a test may change one without rounding it."""
    tensors = synthetic_tensors(config, seed)
    return {name: value.astype(np.float64) for name, value in tensors.items()}


def tokens_of(config: Config, length: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng([seed, length]).integers(0, config.n_vocab, length)


def sites_of(weights: Any, config: Config, tokens: ArrayLike) -> dict[str, NDArray[Any]]:
    return dict(forward(weights, config, np.asarray(tokens)))


def distance(value: ArrayLike, expected: ArrayLike) -> float:
    """‖value - expected‖ / ‖expected‖; shapes must be equal, and everything finite."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape
    assert np.isfinite(value).all() and np.isfinite(expected).all()
    size = float(np.linalg.norm(expected))
    difference = float(np.linalg.norm(value - expected))
    return difference / size if size else difference


def assert_agrees(value: ArrayLike, expected: ArrayLike, what: str = "value") -> None:
    """Equal to within ``RELATIVE``."""
    found = distance(value, expected)
    assert found <= RELATIVE, f"{what}: relative distance {found:.3g}, should be ≤ {RELATIVE:g}"


@st.composite
def models(draw: st.DrawFn) -> tuple[Config, dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """A tiny GPT-2 of any proportions, its weights, and a sequence that it takes."""
    # Below four channels a layer norm can divide by almost nothing and multiply rounding errors.
    head_size, n_head = draw(st.sampled_from([(k, h) for k in range(1, 6) for h in (1, 2, 3, 4)]))
    if head_size * n_head < 4:
        head_size = 4
    config = Config(
        n_vocab=draw(st.integers(2, 13)),
        n_ctx=draw(st.integers(1, 9)),
        n_embd=head_size * n_head,
        n_head=n_head,
        n_layer=draw(st.integers(1, 3)),
    )
    ids = st.integers(0, config.n_vocab - 1)
    tokens = draw(st.lists(ids, min_size=1, max_size=config.n_ctx))
    return config, weights_of(config, draw(st.integers(0, 2**32))), np.array(tokens)
