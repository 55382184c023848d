"""No law refutes a correct port: every law, on models of any size and in any regime.

A false alarm is the worst that this tool can do. A port of transformers is correct by assumption
here, so that whatever is refuted is a mistake of the law, and the smallest such model is printed.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from strategies import Case, Model, cases, scaled
from subjects import port

from gpt_verify.findings import PortReport, Status
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.table import CHECKS

#: What no such port can show: a GPU beside the CPU, and a vocabulary beside the weights.
NOT_SHOWN = {"device", "tokenizer.encode", "tokenizer.decode"}
SIZES = (11, 9, 12, 3, 2)
TOKENS = (((3, 10, 0, 3, 7),),)


def judged(case: Case, device: str) -> PortReport:
    source = case.model.checkpoint()
    return judge(
        repr(case),
        source,
        case.inputs,
        None,
        device,
        Silent(),
        laws=case.laws,
        build=lambda: port(
            attention=case.attention, dtype=case.dtype, source=source, device=device
        ),
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_no_law_refutes_a_correct_port(device: str) -> None:
    examined: Counter[str] = Counter()

    @scaled(16)
    @given(cases())
    @example(Case(Model((1, 1, 1, 1, 1)), "eager", "float32", (((0,),),)))
    @example(Case(Model(SIZES, "tiny_variance"), "sdpa", "float32", TOKENS))
    @example(Case(Model(SIZES, "huge_scores"), "eager", "bfloat16", TOKENS))
    # Once a false alarm of the law of the gradient: the softmax there is as steep as can be.
    @example(Case(Model((31, 2, 5, 1, 2), "huge_scores", 252), "sdpa", "float32", (((3, 10),),)))
    # And once more: of two scores that are nearly as large, noise makes either the larger one.
    @example(Case(Model((3, 9, 27, 3, 3), "huge_scores", 1974), "sdpa", "float16", (((0, 2),),)))
    # Once one of the law of rewritten weights: derivatives that are zero but for rounding.
    @example(Case(Model((7, 15, 4, 1, 3), "equal_rows", 334), "eager", "float16", (((5,),),)))
    @example(Case(Model(SIZES, "constant_rows"), "sdpa", "float16", TOKENS))
    @example(Case(Model(SIZES, "large_channels"), "eager", "float32", TOKENS))
    @example(Case(Model(SIZES, "silent"), "sdpa", "bfloat16", TOKENS))
    def holds(case: Case) -> None:
        report = judged(case, device)
        refuted = [
            f"{f.id} at {f.site}: {f.message} (score {f.score}, limit {f.limit})"
            for f in report.findings
            if f.status is Status.FAILED
        ]
        assert (refuted, report.error) == ([], None)
        examined.update({f.id for f in report.findings if f.status is Status.PASSED})

    holds()
    not_shown = NOT_SHOWN - {"device"} if device == "cuda" else NOT_SHOWN
    missed = {law.id for law in CHECKS} - not_shown - set(examined)
    assert not missed, f"never examined: {missed}"
    print("examples in which each law was examined:", dict(sorted(examined.items())))
