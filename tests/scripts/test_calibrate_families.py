"""The models of the families on which correct ports are calibrated."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from families import read

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.synthetic import synthetic_tensors

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import calibrate  # noqa: E402  # of the scripts, not installed
import calibrate_families as script  # noqa: E402


@pytest.mark.parametrize("turn", range(2 * script.SELDOM))
def test_every_model_that_is_drawn_is_possible(turn: int) -> None:
    for number, name in enumerate(FAMILIES):
        rng = np.random.default_rng([0, turn * len(FAMILIES) + number])
        model = script.drawn(turn * len(FAMILIES) + number, rng)
        config = read(model.keys)
        assert model.family == config.architecture == name
        inputs = script.inputs_of(config, model, rng)
        longest = max(item.tokens.shape[1] for item in inputs)
        assert longest == config.n_ctx
        assert model.long == (longest == script.LONG)


def test_some_channels_of_the_residual_stream_are_far_larger() -> None:
    models = [script.drawn(index, np.random.default_rng([0, index])) for index in range(60)]
    massive = next(model for model in models if model.massive)
    config = read(massive.keys)
    made = script.tensors_of(config, massive, 1)
    plain = synthetic_tensors(config, 1, scale=massive.scale)
    ratios = np.linalg.norm(made["wte"], axis=0) / np.linalg.norm(plain["wte"], axis=0)
    assert 1 <= np.count_nonzero(ratios > 2) <= 3
    assert np.count_nonzero(ratios == 1) >= config.n_embd - 3


@pytest.mark.parametrize(("index", "beyond"), [(119, True), (12, False)])
def test_what_leaves_the_range_of_float16_is_not_judged_in_it(index: int, beyond: bool) -> None:
    """An OLMo 2 of which the reference makes 72,531 where float16 ends at 65,504."""
    rng = np.random.default_rng([0, index])
    with script.model_of(index, rng) as (model, checkpoint):
        inputs = script.inputs_of(checkpoint.config, model, rng)
        largest = calibrate.largest_number(checkpoint, inputs)
    assert (largest > 65504) == beyond
