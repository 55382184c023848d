"""Faults of precision compute in float32 what their NumPy forms say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fault_ports import injected
from models import CONFIG, batch, checkpoint
from rounding import LIMIT_FLOORS, Noise, reference_run

from gpt_verify.diagnosis.sites import STEADY
from gpt_verify.faults.fault import Fault
from gpt_verify.graph.run import run
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.port import ACTIVATIONS
from gpt_verify.sites import sites

SOURCE = checkpoint()
INPUT = batch(CONFIG, 1, 17)
FAULTS = [fault for fault in CATALOGUE.values() if fault.family == "precision"]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_both_forms_round_alike(fault: Fault) -> None:
    """Up to the first site that they change: nine numbers of ten are rounded to the same side, to
    within what float32's rounding does to the correct operation there, channel by channel."""
    shown: dict[str, Any] = {}

    def keep(site: str, value: Any, narrowest: str | None = None) -> None:
        shown[site] = value[0].astype(np.float64)

    port = injected(SOURCE, (fault.name, range(CONFIG.n_layer)))
    port.offers()[ACTIVATIONS](INPUT.tokens, keep)
    overrides = fault.overrides(CONFIG)
    order = list(sites(CONFIG))
    first = order[min(map(order.index, overrides))]
    computed = dict(run(SOURCE.tensors.__getitem__, CONFIG, INPUT.tokens[0], overrides, keep=None))
    right = Noise(reference_run(SOURCE.tensors, CONFIG, INPUT.tokens[0]), FLOAT32)
    within = LIMIT_FLOORS * np.sqrt(np.mean(right.noise[first] ** 2, axis=(0, 1)))
    assert np.mean(np.abs(shown[first] - computed[first]) <= within) >= STEADY
    # It is not the correct operation: those that happen to be right are the smaller part.
    assert np.mean(np.abs(shown[first] - right.exact[first]) <= within) < 0.5
