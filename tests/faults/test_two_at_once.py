"""Two faults in one port, of different families and in different layers: both are found."""

from __future__ import annotations

import pytest
from fault_ports import ANY, judged
from models import failed_laws

from gpt_verify.findings import Verdict
from gpt_verify.laws.catalogue import CATALOGUE

#: Drawn at random from the catalogue (``random.Random(1)``), two of different families, each in a
#: layer of its own. Of what was drawn, what is random itself is left out (a loss that changes from
#: call to call has no name), and so are the caches and batches of a wrong model: see below.
PAIRS = [
    "attention-scale-by-width@0+weights-transposed@1",
    "norm-exchanged@1+head-wrong-rows@2",
    "loss-clipped@0+residual-mlp-from-input@2",
    "head-softmax@1+gelu-missing-cubic@2",
    "linear-query-bias-missing@0+gelu-missing-cubic@2",
    "loss-clipped@0+weights-exponent-bit@1",
    "weights-int8-tensor@1+attention-mask-weak@2",
    "weights-rows-exchanged@1+attention-rotary-neighbours@0",
    "gelu-scale-0.79788@2+embeddings-positions-late@0",
    "head-copied@0+loss-mask-not-shifted@1",
    "attention-merge-interleaved@1+weights-missing@2",
    "loss-ignored-from-the-end@1+attention-softmax-bfloat16@2",
    "norm-missing-gain@2+embeddings-scaled@0",
    "embeddings-positions-reversed@1+norm-unbiased-variance@2",
]
#: A model that is wrong by itself, and a fault that its law knows by what it does to a correct one.
AROUND = ["attention-heads-dealt@0+cache-no-mask@2", "gelu-silu@0+batch-first-row-for-all@2"]


def names(pair: str) -> list[str]:
    """Of both faults."""
    return [part.partition("@")[0] for part in pair.split("+")]


@pytest.mark.parametrize("pair", PAIRS)
def test_both_are_named(pair: str) -> None:
    report = judged(ANY + pair)
    assert report.verdict is Verdict.REFUTED
    assert set(report.explained_by) == set(names(pair)), report.causes


@pytest.mark.parametrize("pair", AROUND)
def test_both_are_refuted_where_one_cannot_be_named(pair: str) -> None:
    report = judged(ANY + pair)
    first, second = names(pair)
    assert CATALOGUE[second].law in failed_laws(report)
    assert {first} <= set(report.explained_by) <= {first, second}, report.causes
