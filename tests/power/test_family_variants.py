"""Correct ports of the families: each is another way of computing the same, and verified."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from families import Sources, family
from models import failures

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.findings import Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.power.family_variants import CALLS, REWRITES, every, plain
from gpt_verify.power.injection import correct_port
from gpt_verify.power.trial import short_inputs

#: Each rewriting in one family that has the step, in the format that rounds most.
WRITTEN = {
    "q, k and v in one matrix, bfloat16": "phi",
    "gate and up in one matrix, bfloat16": "llama",
    "rotary positions by complex numbers, bfloat16": "llama",
    "F.rms_norm": "llama",
    "norm by hand": "phi",
    "a kernel that shares heads, bfloat16": "llama",
    "einsum by groups, bfloat16": "llama",
}


@pytest.mark.parametrize(("name", "of"), WRITTEN.items(), ids=list(WRITTEN))
def test_what_is_written_otherwise_is_verified(sources: Sources, name: str, of: str) -> None:
    source = sources(of)
    report = judge(
        name,
        source,
        short_inputs(source, 0)[:1],
        None,
        "cpu",
        Silent(),
        build=lambda: every(source.config)[name](source),
        laws=(),
    )
    assert report.verdict is Verdict.VERIFIED, failures(report)
    assert report.explained_by == ()


def test_all_of_them_are_tried() -> None:
    assert {name.removesuffix(", bfloat16") for name in WRITTEN} == set(REWRITES)
    having = Counter(name for of in FAMILIES for name in every(family(of)))
    assert {*REWRITES, *CALLS} <= set(having)
    for of in FAMILIES:
        assert len(every(family(of))) > len(plain(family(of))) + len(CALLS)


def test_matrices_are_one_in_the_module(sources: Sources) -> None:
    """What is fused is no copy: the parameters are fewer, and as many numbers."""
    source = sources("phi")
    ports: tuple[Any, ...] = (
        every(source.config)["q, k and v in one matrix"](source),
        correct_port(source),
    )
    fused, apart = (list(port.module.parameters()) for port in ports)
    assert sum(p.numel() for p in fused) == sum(p.numel() for p in apart)
    # Matrix and bias: of each layer six tensors become two.
    assert len(apart) - len(fused) == 4 * source.config.n_layer
