"""Each fault does what it says: in torch and in NumPy alike, where it says, and nowhere before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fault_ports import float64_sites, planted
from models import CONFIG, batch, checkpoint

from verify.diagnosis.sites import HIDDEN
from verify.faults.catalogue import CATALOGUE
from verify.faults.fault import Fault
from verify.faults.oracle import run
from verify.inputs import Input
from verify.sites import sites

SOURCE = checkpoint()
#: Begins with the first token and ends with the last, which some faults confuse.
INPUT = Input("17", np.array([[0, *batch(CONFIG, 1, 15).tokens[0], CONFIG.n_vocab - 1]]))
#: What a torch port shows before the fault strikes: the sum of two rows, which is normalised then.
EARLY = {"embeddings-normalised": "embed"}
LAYERS = range(CONFIG.n_layer)
#: Rounding of three layers in float64, relative to the largest element of a site.
TOLERANCE = 1e4 * float(np.finfo(np.float64).eps)
#: A fault of precision is none in float64, and is compared in float32.
SITES = [f for f in CATALOGUE.values() if f.acts and f.plant and f.family != "precision"]


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_is_described(fault: Fault) -> None:
    assert fault.name.startswith(f"{fault.family}-")
    assert fault.summary
    assert not fault.summary.endswith(".")
    assert fault.acts or fault.alter or fault.plant or fault.plant_port
    assert {site.kind for site in sites(CONFIG).values()} >= set(fault.acts)


def compared(site: str, value: Any) -> tuple[Any, Any]:
    """What counts at a site, and of the scores who is hidden: there any low number will do."""
    if not site.endswith("attn.scores"):
        return value, None
    below = np.tril(value)
    return np.where(below > HIDDEN, below, 0.0), below > HIDDEN


@pytest.mark.parametrize(
    ("fault", "layers"),
    [
        pytest.param(fault, layers, id=f"{fault.name}, {name}")
        for fault in SITES
        for layers, name in ((LAYERS, "everywhere"), ([1], "in layer 1"))
        if fault.layered or layers is LAYERS
    ],
)
def test_both_forms_compute_the_same(fault: Fault, layers: Sequence[int]) -> None:
    """Two writings of one mistake, from the tokens to the logits; a coarse one may round single
    elements to the other side, and is compared where it first acts."""
    shown = float64_sites(planted(SOURCE, (fault.name, layers)), INPUT)
    overrides = fault.overrides(CONFIG, layers)
    computed = dict(
        run(lambda name: SOURCE.tensors[name], CONFIG, INPUT.tokens[0], overrides, keep=None)
    )
    right = dict(run(lambda name: SOURCE.tensors[name], CONFIG, INPUT.tokens[0], {}, keep=None))
    order = list(sites(CONFIG))
    first = min(map(order.index, overrides))
    for site in order[:first]:
        np.testing.assert_array_equal(computed[site], right[site])
    changed = [s for s in overrides if not np.allclose(computed[s], right[s], rtol=1e-13, atol=0)]
    assert bool(changed) == (fault.law is not None)
    assert "logits" in shown
    for site in order[: first + 1] if fault.coarse else order:
        if site not in shown or EARLY.get(fault.name) == site:
            continue
        ours, hidden_by_us = compared(site, computed[site])
        theirs, hidden_by_them = compared(site, shown[site])
        np.testing.assert_array_equal(hidden_by_us, hidden_by_them)
        close = np.abs(theirs - ours) <= TOLERANCE * float(np.max(np.abs(ours)))
        assert np.mean(close) >= (0.9 if fault.coarse else 1.0), site


def test_without_overrides_it_is_the_oracle() -> None:
    from reference import forward

    ours = run(lambda name: SOURCE.tensors[name], CONFIG, INPUT.tokens[0], {})
    theirs = forward(SOURCE.tensors, CONFIG, INPUT.tokens[0])
    for (site, value), (other, expected) in zip(ours, theirs, strict=True):
        assert site == other
        np.testing.assert_array_equal(value, expected)
