"""What only large models reach: every threshold set so low that tiny models take that path too."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import altered_ports
import pytest
import symmetry_faults
import tying_faults
from models import CONFIG, INPUTS, checkpoint, failed_laws, failures
from subjects import port

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import PortReport, Status, Verdict, concerns
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.table import CHECKS
from gpt_verify.numerics import draws
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference import Config
from gpt_verify.sites import sites

#: Every number above which a model, an input or an array is treated in another way, and one that
#: the tiny models exceed. A new threshold belongs here.
THRESHOLDS: dict[str, Any] = {
    "gpt_verify.laws.activations.check.LARGE": 1,
    "gpt_verify.laws.agreement.TILE_ELEMENTS": 1,
    "gpt_verify.laws.cache.check.FEWEST": 10,
    "gpt_verify.laws.cache.check.READS": 0,
    "gpt_verify.laws.cache.check.SPLIT_READS": 0,
    "gpt_verify.laws.causality.check.ELEMENTS": 1,
    "gpt_verify.laws.causality.boundaries.AFTER": 2,
    "gpt_verify.laws.causality.boundaries.RUNGS": (6, 12),
    "gpt_verify.laws.causality.boundaries.SHORT": 4,
    "gpt_verify.laws.causality.boundaries.WORK": 0,
    "gpt_verify.laws.lengths.check.FOR_POSITIONS": 1,
    "gpt_verify.laws.lengths.check.LARGE": 6,
    "gpt_verify.laws.lens.check.BLOCK_ELEMENTS": 1,
    "gpt_verify.laws.lens.check.ELEMENTS": 1,
    "gpt_verify.laws.loss.check.LOGITS": 1,
    "gpt_verify.laws.subject.LARGE": 0,
    "gpt_verify.laws.symmetry.transforms.TILE": 5,
    "gpt_verify.laws.table_rows.TILE": 64,
    "gpt_verify.laws.unchanged.PIECE": 16,
    "gpt_verify.laws.worst.TILE": 8,
    "gpt_verify.matching.match._TILE": 8,
    "gpt_verify.graph.derivatives.ROOM_BYTES": 1,
    "gpt_verify.graph.floor.FOR_POSITIONS": 1,
    "gpt_verify.graph.tiles.HEAD_ELEMENTS": 1,
    "gpt_verify.graph.tiles.TABLE_ELEMENTS": 1,
    "gpt_verify.graph.tiles.TILE_ELEMENTS": 7,
    "gpt_verify.numerics.loss.TILE": 1,
    "gpt_verify.numerics.weights.TILE": 5,
}

Alter = Callable[[Any], None]


@pytest.fixture(params=[False, True], ids=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both sides of every threshold."""
    large: bool = request.param
    if large:
        for name, value in THRESHOLDS.items():
            module, _, constant = name.rpartition(".")
            assert hasattr(importlib.import_module(module), constant), name
            monkeypatch.setattr(name, value)
        # The defaults of arguments, bound when the function was made.
        monkeypatch.setattr(draws.draws, "__defaults__", (1,))
        monkeypatch.setattr(DeclaredWeights.__init__, "__defaults__", (1,))
    return large


def judged(
    alter: Alter = lambda model: None,
    attention: str = "eager",
    dtype: Any = None,
    source: Checkpoint | None = None,
    laws: Collection[str] | None = None,
) -> PortReport:
    source = source or checkpoint()
    build = partial(port, alter, attention, dtype, source)
    return judge("port", source, INPUTS, dtype, "cpu", Silent(), build=build, laws=laws)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_correct_ports_are_verified(size: bool, attention: str, dtype: str) -> None:
    report = judged(attention=attention, dtype=dtype)
    assert report.error is None
    assert failures(report) == []
    assert report.verdict is Verdict.VERIFIED
    missing = {(f.id, f.site) for f in report.findings if f.status is Status.NOT_EXAMINED}
    # There is no tokenizer and no second device, and the fused attention shows no scores.
    allowed = {(law, None) for law in ("device", "tokenizer.encode", "tokenizer.decode")}
    if attention == "sdpa":
        hidden = [name for name in sites(CONFIG) if name.endswith(("scores", "pattern"))]
        laws = ("architecture", "activations.local", "activations.cascaded", "causality.pattern")
        allowed |= {(law, name) for law in laws for name in hidden} | {("outputs.patterns", None)}
    assert missing <= allowed
    # A float64 copy that breaks would be passed over, and the law pass all the same.
    for law in ("gradient", "symmetry.gradient", "tying.gradient"):
        found = [f for f in report.findings if f.id == law]
        assert found and all("in float64" in f.message for f in found), law


def test_a_model_with_more_blocks_than_any_that_is_released(size: bool) -> None:
    """All of them are rewritten by the laws of symmetry, and so is the direction of each tensor."""
    config = Config(n_vocab=101, n_ctx=19, n_embd=8, n_head=2, n_layer=50)
    # The others ask for nothing block by block that depends on how many there are.
    laws = None if size else [part.id for part in CHECKS if concerns("symmetry", part.id)]
    report = judged(source=checkpoint(config), laws=laws)
    assert report.error is None and failures(report) == []


#: Fault → the laws that must refute it, and no others; a fault in the function shows in more.
FAULTS: dict[Alter, set[str]] = {
    symmetry_faults.one_head_learns_half: {
        "gradient",
        "symmetry.gradient",
        "tying.gradient",
        # Its attention is written out, without a cache, with which it generates, without a mask
        # for padding, and without handing out its pattern.
        "cache",
        "positions.padding",
        "generation.greedy",
        "generation.padded",
        "outputs.patterns",
    },
    tying_faults.head_detached: {"gradient", "tying.gradient", "tying.graph"},
    tying_faults.tied_by_data: {"tying.persistence"},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_refuted_by_its_laws_alone(size: bool, fault: Alter) -> None:
    report = judged(fault)
    assert report.error is None
    assert failed_laws(report) == FAULTS[fault]


@pytest.mark.parametrize(
    ("fault", "site"),
    [
        (altered_ports.exact_gelu, "h.0.mlp.act"),
        (altered_ports.one_bit, "h.2.mlp.out"),
        (altered_ports.mask_too_generous, "h.0.attn.pattern"),
        (altered_ports.epsilon_1e6, "h.0.ln_1"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_is_found_where_it_is(size: bool, fault: Alter, site: str) -> None:
    report = judged(fault)
    assert report.error is None
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == site
