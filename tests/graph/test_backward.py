"""The backward pass through the table of sites, against central differences, which know no rule."""

from __future__ import annotations

import numpy as np
import pytest
from models import checkpoint

from gpt_verify.graph.backward import Backward, Read
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.derivatives import derivatives
from gpt_verify.graph.directions import WTE_READERS, Direction, draw
from gpt_verify.graph.table import OPERATIONS
from gpt_verify.laws.gradient.hypotheses import MISTAKES
from gpt_verify.numerics.precision import FLOAT32, FLOAT64
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference import Config

SIZES = {"n_vocab": 31, "n_ctx": 7, "n_embd": 12, "n_head": 3, "n_layer": 2}
CONFIG = Config(**SIZES)
CONFIGS = [
    CONFIG,
    Config(**SIZES, architecture="openai-gpt"),
    Config(**SIZES, tied=False),
    Config(n_vocab=2, n_ctx=2, n_embd=1, n_head=1, n_layer=1),
]


def backward_of(config: Config) -> tuple[Backward, DeclaredWeights, np.ndarray]:
    weights = DeclaredWeights(checkpoint(config).tensors, FLOAT32)
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, (2, min(6, config.n_ctx)))
    return Backward(config, weights, tokens), weights, tokens


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_right_rules_give_the_derivative_of_every_tensor(config: Config) -> None:
    backward, weights, tokens = backward_of(config)
    drawn = draw(config, np.random.default_rng(1))
    ends = [direction for direction in drawn if direction.sites != WTE_READERS]
    read = {found.site: found for found in backward.right}
    known = derivatives(config, weights, tokens, ends, FLOAT64)
    assert {d.direction.sites[0] for d in known} == set(read)
    for derivative in known:
        got = read[derivative.direction.sites[0]].along(derivative.direction)
        assert derivative.floors(got) < LIMIT_FLOORS, derivative.direction.tensor


@pytest.mark.parametrize("name", MISTAKES)
def test_another_rule_changes_what_comes_after_it_alone(name: str) -> None:
    backward, _, _ = backward_of(CONFIG)
    drawn: dict[tuple[str, ...], list[Direction]] = {}
    for direction in draw(CONFIG, np.random.default_rng(1)):
        drawn.setdefault(direction.sites, []).append(direction)
    right = {found.site: found for found in backward.right}
    rules = {f"h.1.{kind}": rule for kind, rule in MISTAKES[name].items() if kind != "ln_f"}
    walked = list(backward.walk(rules))
    assert {found.site for found in walked} < set(right)

    def differ(found: Read) -> list[bool]:
        """By more than a thousand roundings of float64: a product's last bits may depend on where
        its operands lie in memory."""
        limit = 1000 * FLOAT64.u * found.size
        return [
            abs(found.along(direction) - right[found.site].along(direction)) > limit
            for direction in drawn[(found.site,)]
        ]

    assert any(any(differ(found)) for found in walked)
    # And what is kept is what it was.
    again = list(backward.walk({"logits": OPERATIONS["unembed"].back}))
    assert {found.site for found in again} == set(right)
    assert not any(any(differ(found)) for found in again)
