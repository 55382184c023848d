"""Each fault does what it says: in torch and in NumPy alike, where it says, and nowhere before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from families import family
from fault_ports import float64_sites, injected
from models import CONFIG, batch, checkpoint
from rounding import LIMIT_FLOORS, Noise, Run

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.diagnosis.sites import HIDDEN
from gpt_verify.faults.fault import Fault
from gpt_verify.graph.call import Override
from gpt_verify.graph.run import right, run
from gpt_verify.inputs import Input
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.sites import sites

SOURCE = checkpoint()
#: Every kind of site that GPT-2 or a family has.
KINDS = {
    site.kind for config in (CONFIG, *map(family, FAMILIES)) for site in sites(config).values()
}
#: Begins with the first token and ends with the last, which some faults confuse.
INPUT = Input("17", np.array([[0, *batch(CONFIG, 1, 15).tokens[0], CONFIG.n_vocab - 1]]))
#: What a torch port shows before the fault strikes: the sum of two rows, which is normalised then.
EARLY = {"embeddings-normalised": "embed"}
LAYERS = range(CONFIG.n_layer)
#: What a difference between the two forms is proved to be seen by: a change in the seventh digit.
OFF = 1 + 1e-7
#: A fault of precision is none in float64, and is compared in float32.
SITES = [
    f
    for f in CATALOGUE.values()
    if f.sites.operations and f.inject is not None and f.family != "precision"
]


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_is_described(fault: Fault) -> None:
    assert fault.name.startswith(f"{fault.family}-")
    assert fault.summary
    assert not fault.summary.endswith(".")
    assert fault.inject is not None or fault.predict is not None
    assert fault.in_family is None or fault.sites.operations
    assert set(fault.sites.operations) <= KINDS


def run_with(overrides: Mapping[str, Override]) -> Run:
    """The oracle with some operations replaced, its values rounded as they are kept."""

    def each(dtype: type[np.floating], store: Callable[[Any], Any]) -> Any:
        every = {site: overrides.get(site, right) for site in sites(CONFIG)}
        kept: dict[str, Override] = {
            site: lambda call, act=act: store(np.asarray(act(call), dtype))
            for site, act in every.items()
        }
        lookup = SOURCE.tensors.__getitem__
        return run(lookup, CONFIG, INPUT.tokens[0], kept, dtype=dtype, keep=None)

    return each


def visible(site: str, value: Any) -> Any:
    """Of the scores those that are not hidden, for which any low number will do."""
    if not site.endswith("attn.scores"):
        return True
    return np.tri(*value.shape[-2:], dtype=np.bool_) & (value > HIDDEN)


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
    """Two writings of one mistake, from the tokens to the logits, at every site, to within what
    rounding does to this very mistake. A difference in the seventh digit is far beyond that."""
    shown = float64_sites(injected(SOURCE, (fault.name, layers)), INPUT)
    overrides = fault.overrides(CONFIG, layers)
    known, order = Noise(run_with(overrides)), list(sites(CONFIG))
    unchanged = dict(run_with({})(np.float64, lambda x: x))
    first = min(map(order.index, overrides))
    for site in order[:first]:
        np.testing.assert_array_equal(known.exact[site], unchanged[site])
    changed = [s for s in overrides if floors(known, s, unchanged[s]) > LIMIT_FLOORS]
    assert bool(changed) == (fault.law is not None)
    assert "logits" in shown
    compared = [s for s in order if s in shown and EARLY.get(fault.name) != s]
    for site in compared:
        np.testing.assert_array_equal(
            visible(site, known.exact[site]), visible(site, shown[site]), site
        )
        assert floors(known, site, shown[site]) <= LIMIT_FLOORS, site
    # The same form with the first operation off in the seventh digit: it would not have passed.
    act = overrides[order[first]]
    off = {**overrides, order[first]: lambda call: np.float64(act(call)) * OFF}
    other = dict(run_with(off)(np.float64, lambda x: x))
    assert max(floors(known, site, other[site]) for site in compared) > LIMIT_FLOORS


def floors(known: Noise, site: str, got: Any) -> float:
    return known.floors(site, got, visible(site, known.exact[site]))


def test_without_overrides_it_is_the_oracle() -> None:
    from gpt_verify.reference import forward

    ours = run(lambda name: SOURCE.tensors[name], CONFIG, INPUT.tokens[0], {})
    theirs = forward(SOURCE.tensors, CONFIG, INPUT.tokens[0])
    for (site, value), (other, expected) in zip(ours, theirs, strict=True):
        assert site == other
        np.testing.assert_array_equal(value, expected)
