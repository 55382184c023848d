"""Each fault does what it says: in torch and in NumPy alike, where it says, and nowhere before."""

from __future__ import annotations

import numpy as np
import pytest
from fault_ports import float64_sites, planted
from models import CONFIG, batch, checkpoint

from verify.faults.catalogue import CATALOGUE
from verify.faults.fault import Fault, kind_of
from verify.faults.oracle import run
from verify.sites import sites

SOURCE = checkpoint()
INPUT = batch(CONFIG, 1, 17)
LAYERS = range(CONFIG.n_layer)
SITES = [f for f in CATALOGUE.values() if f.acts and f.plant]


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_is_described(fault: Fault) -> None:
    assert fault.name.startswith(f"{fault.family}-")
    assert fault.summary
    assert not fault.summary.endswith(".")
    assert fault.acts or fault.alter or fault.plant or fault.plant_port
    assert {kind_of(site) for site in sites(CONFIG)} >= set(fault.acts)


@pytest.mark.parametrize("fault", SITES, ids=[fault.name for fault in SITES])
@pytest.mark.parametrize("layers", [LAYERS, [1]], ids=["everywhere", "in layer 1"])
def test_both_forms_compute_the_same(fault: Fault, layers: list[int]) -> None:
    """Two writings of one mistake; a coarse one may round single elements to the other side."""
    shown = float64_sites(planted(SOURCE, (fault.name, layers)), INPUT)
    overrides = fault.overrides(CONFIG, layers)
    computed = dict(
        run(lambda name: SOURCE.tensors[name], CONFIG, INPUT.tokens[0], overrides, keep=None)
    )
    right = dict(run(lambda name: SOURCE.tensors[name], CONFIG, INPUT.tokens[0], {}, keep=None))
    first = min(overrides, key=list(sites(CONFIG)).index)
    scale = float(np.max(np.abs(computed[first])))
    off = np.abs(shown[first] - computed[first]) > 1e4 * np.finfo(np.float64).eps * scale
    assert np.mean(off) <= (0.1 if fault.coarse else 0.0)
    assert not np.array_equal(computed[first], right[first])
    for site in list(sites(CONFIG))[: list(sites(CONFIG)).index(first)]:
        np.testing.assert_array_equal(computed[site], right[site])


def test_without_overrides_it_is_the_oracle() -> None:
    from reference import forward

    ours = run(lambda name: SOURCE.tensors[name], CONFIG, INPUT.tokens[0], {})
    theirs = forward(SOURCE.tensors, CONFIG, INPUT.tokens[0])
    for (site, value), (other, expected) in zip(ours, theirs, strict=True):
        assert site == other
        np.testing.assert_array_equal(value, expected)
