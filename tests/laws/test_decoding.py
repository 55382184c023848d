"""The oracle that decodes in pieces, without a mistake and with each of them."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, checkpoint
from rounding import LIMIT_FLOORS, Noise, reference_run

from gpt_verify.graph.decode import decode
from gpt_verify.laws.cache.check import splits_of
from gpt_verify.laws.cache.hypotheses import ways
from gpt_verify.laws.decoding import Way

SOURCE = checkpoint()
TOKENS = np.random.default_rng(3).integers(0, CONFIG.n_vocab, 7)
NOISE = Noise(reference_run(SOURCE.tensors, CONFIG, TOKENS))


def decoded(lengths: tuple[int, ...], way: Way) -> np.ndarray | None:
    return decode(SOURCE.tensors, CONFIG, np.split(TOKENS, np.cumsum(lengths)[:-1]), way)


@pytest.mark.parametrize("lengths", splits_of(7), ids=str)
def test_without_a_mistake_it_is_the_reference(lengths: tuple[int, ...]) -> None:
    NOISE.assert_holds("logits", decoded(lengths, Way("")))


def test_every_mistake_shows_in_some_split_and_in_none_without_a_cache() -> None:
    for way in ways(CONFIG.n_layer, len(TOKENS)):
        shown = [
            np.inf if got is None else NOISE.floors("logits", got)
            for got in (decoded(lengths, way) for lengths in splits_of(7))
        ]
        assert max(shown) > LIMIT_FLOORS, way.message
        if "sees only the last" not in way.message:
            assert shown[0] <= LIMIT_FLOORS, way.message


def test_a_position_that_does_not_exist_is_no_hypothesis() -> None:
    assert decoded((7,), Way("", lambda before, n: np.arange(n) + CONFIG.n_ctx)) is None
    assert decoded((7,), Way("", lambda before, n: np.arange(n) - 1)) is None
