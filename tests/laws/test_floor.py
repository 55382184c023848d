"""The noise floor of single positions: no correct port is far above it, no wrong one below."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, checkpoint
from rounding import Noise, reference_run, summed
from subjects import port, subject

from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.subject import NotExamined
from gpt_verify.numerics.weights import Widened
from gpt_verify.reference import Config
from gpt_verify.reference import logits as reference_logits

DTYPES = ("float64", "float32", "bfloat16", "float16")
ODD = [
    Config(n_vocab=1, n_ctx=2, n_embd=4, n_head=1, n_layer=2),
    Config(n_vocab=1, n_ctx=9, n_embd=3, n_head=1, n_layer=5),
    Config(n_vocab=2, n_ctx=14, n_embd=2, n_head=1, n_layer=5),
    Config(n_vocab=101, n_ctx=9, n_embd=1, n_head=1, n_layer=3),
    CONFIG,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", ODD, ids=lambda c: f"V{c.n_vocab}D{c.n_embd}L{c.n_layer}")
def test_every_position_of_a_correct_port_is_near_it(config: Config, dtype: str) -> None:
    """Where the noise of a position, or of the only token, happened to be nothing as well."""
    for seed in range(4):
        source = checkpoint(config, seed, scale=1.5)
        judged = subject(port(source=source, dtype=dtype), source)
        tokens = judged.tokens(1, config.n_ctx)
        exact = reference_logits(Widened(judged.weights), config, tokens[0])
        difference = judged.port.logits(tokens)[0] - exact
        squares = (difference**2).mean(axis=-1)
        floors = judged.position_floors(squares, tokens[0])
        assert floors.max() <= LIMIT_FLOORS / 2
        whole = float(np.sqrt((floors**2).mean()))
        # Sums of squares over the vocabulary and the positions, a quotient and a root.
        assert judged.floors(difference, tokens[0]) == summed(whole, difference.size + 4)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_it_lies_within_two_orders_of_the_rounding_that_it_bounds(dtype: str) -> None:
    judged = subject(port(dtype=dtype))
    tokens = judged.tokens(1, CONFIG.n_ctx)
    exact = reference_logits(Widened(judged.weights), CONFIG, tokens[0])
    size = np.sqrt((exact**2).mean())
    floor = judged.floor(tokens[0])
    assert (judged.precision.u_sum * size / 4 < floor).all()
    assert (floor < 100 * judged.precision.u * size).all()


def test_the_last_position_and_a_part_are_those_of_the_whole() -> None:
    judged, other = subject(port()), subject(port())
    tokens = judged.tokens(1, CONFIG.n_ctx)[0]
    whole = judged.measured(tokens)
    exact = reference_logits(Widened(judged.weights), CONFIG, tokens)
    known = Noise(reference_run(Widened(judged.weights), CONFIG, tokens))
    whole_TV = np.concatenate([exact[:-1], whole.last_V[None]])
    known.assert_holds("logits", whole_TV)
    part = other.floor(tokens, CONFIG.n_ctx - 3)
    assert part.shape == (3,)
    # Both are no less than the mean of what they cover, hence not equal.
    assert (part <= 2 * whole.rms_T.max()).all()
    assert (part >= whole.rms_T.min() / 2).all()
    assert other.floor(tokens).shape == tokens.shape
    assert other.floor(tokens, 5).shape == (CONFIG.n_ctx - 5,)


def test_nothing_is_measured_where_nothing_differs() -> None:
    judged = subject(port())
    tokens = judged.tokens(1, 4)[0]
    assert judged.position_floors(np.zeros(4), tokens).tolist() == [0.0] * 4
    assert judged.weights.memo == {}


def test_what_is_not_finite_is_infinitely_far() -> None:
    judged = subject(port())
    tokens = judged.tokens(1, 4)[0]
    difference = np.zeros((4, CONFIG.n_vocab))
    difference[2, 3] = np.nan
    assert judged.floors(difference, tokens) == np.inf


def test_a_reference_that_overflows_has_no_floor() -> None:
    source = checkpoint(scale=1.0)
    tensors = dict(source.tensors)
    tensors["ln_f/g"] = np.full(CONFIG.n_embd, 6e4, np.float32)
    tensors["ln_f/b"] = np.full(CONFIG.n_embd, 6e4, np.float32)
    large = type(source)(source.path, source.format, source.config, tensors)
    judged = subject(port(source=large, dtype="float16"), large)
    with pytest.raises(NotExamined, match="overflows in float16"):
        judged.floor(judged.tokens(1, 3)[0])
