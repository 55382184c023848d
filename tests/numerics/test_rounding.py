"""Tolerances that are counted or measured let rounding pass, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, batch, checkpoint
from rounding import LIMIT_FLOORS, Noise, gamma, nats_apart, reference_run, slope, summed

from gpt_verify.numerics.precision import BFLOAT16, FLOAT32, FLOAT64, Precision
from gpt_verify.reference import forward, logits
from gpt_verify.reference.loss import loss_nats

SOURCE = checkpoint()
TOKENS = batch(CONFIG, 2, 9).tokens
SITES = ("h.0.attn.pattern", "h.1.mlp.act", "h.2.resid_post", "logits")
KNOWN = {
    p.name: Noise(reference_run(SOURCE.tensors, CONFIG, TOKENS[0]), p)
    for p in (FLOAT64, FLOAT32, BFLOAT16)
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("p", [FLOAT64, FLOAT32, BFLOAT16], ids=lambda p: p.name)
def test_the_noise_is_that_of_the_format(p: Precision, site: str) -> None:
    """What is off by a unit in the last place passes; what is off by a thousand does not."""
    known = KNOWN[p.name]
    run = dict(forward(SOURCE.tensors, CONFIG, TOKENS[0], np.float64))
    assert known.floors(site, run[site]) == 0.0
    units = np.random.default_rng(0).uniform(-1, 1, run[site].shape) * p.u
    assert known.floors(site, run[site] * (1 + units)) <= LIMIT_FLOORS
    assert known.floors(site, run[site] * (1 + 1000 * p.u)) > LIMIT_FLOORS
    with pytest.raises(AssertionError, match=f"{site}: .* floors"):
        known.assert_holds(site, run[site] * (1 + 1000 * p.u))


@pytest.mark.parametrize("p", [FLOAT32, BFLOAT16], ids=lambda p: p.name)
def test_a_run_in_the_format_is_at_its_noise(p: Precision) -> None:
    """Neither far above the floor, nor so far below that anything would pass."""
    narrow = dict(forward(SOURCE.tensors, CONFIG, TOKENS[0], np.float32, p.round))
    for site in SITES:
        assert 0.1 < KNOWN[p.name].floors(site, narrow[site]) < LIMIT_FLOORS / 2, site


def test_what_is_not_a_number_is_infinitely_far() -> None:
    bad = np.where(np.arange(CONFIG.n_vocab) == 3, np.nan, KNOWN["float64"].exact["logits"])
    assert KNOWN["float64"].floors("logits", bad) == np.inf


def test_another_shape_is_no_value() -> None:
    with pytest.raises(AssertionError):
        KNOWN["float64"].floors("logits", KNOWN["float64"].exact["logits"][:1])


def test_a_slope_is_the_derivative_and_a_millionth_off_is_none() -> None:
    weights = {name: np.array(value, np.float64) for name, value in SOURCE.tensors.items()}
    direction = np.random.default_rng(1).standard_normal(weights["h1/mlp/c_fc/w"].shape)
    found = slope(weights, CONFIG, TOKENS, {"h1/mlp/c_fc/w": direction})

    def loss(step: float) -> float:
        perturbed = {**weights, "h1/mlp/c_fc/w": weights["h1/mlp/c_fc/w"] + step * direction}
        return float(np.mean([loss_nats(logits(perturbed, CONFIG, row), row) for row in TOKENS]))

    h = 1e-3
    coarse, fine = ((loss(s) - loss(-s)) / (2 * s) for s in (h, h / 2))
    better = (4 * fine - coarse) / 3
    # What the extrapolation changed is far more than what is left of the truncation.
    assert abs(better - found.value) <= abs(better - fine)
    assert found.floors(found.value * (1 + 1e-6)) > LIMIT_FLOORS


def test_counted_roundings() -> None:
    u = FLOAT64.u
    assert gamma(1) == u / (1 - u)
    x = np.random.default_rng(2).uniform(0.5, 1, 1000)
    forwards = backwards = 0.0
    for a, b in zip(x, x[::-1], strict=True):
        forwards, backwards = forwards + a, backwards + b
    assert forwards == summed(backwards, 999)
    assert forwards * (1 + 1e-12) != summed(backwards, 999)
    assert summed(0.0, 999) != 1e-300
    assert 0 < nats_apart(np.random.default_rng(3).standard_normal((5, 40)), 5) < 1e-12
