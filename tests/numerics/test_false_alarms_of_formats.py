"""What campaigns over correct models found: errors of kernels, formats that a port has anyway."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpt_verify.diagnosis.depends import depends
from gpt_verify.findings import Finding, Status
from gpt_verify.graph.operations import gelu_exact
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32


@pytest.mark.parametrize("size", [0.02, 0.1, 0.5, 3.0])
def test_torchs_exact_gelu_is_within_its_budget_near_zero(size: float) -> None:
    x = np.random.default_rng(0).normal(0, size, (64, 512)).astype(np.float32)
    got = torch.nn.functional.gelu(torch.from_numpy(x)).numpy().astype(np.float64)
    expected = gelu_exact.rounding(FLOAT32, Measured(x.astype(np.float64)))
    assert expected.budget is not None
    assert np.sqrt(np.mean(((got - expected.value) / expected.budget) ** 2)) <= 1.0


def test_what_a_half_format_stores_so_anyway_is_no_fault_of_it() -> None:
    table, softmax = CATALOGUE["rotary-table-bfloat16"], CATALOGUE["attention-softmax-float16"]
    assert [table.concerns(p) for p in (FLOAT32, FLOAT16, BFLOAT16)] == [True, True, False]
    assert [softmax.concerns(p) for p in (FLOAT32, FLOAT16, BFLOAT16)] == [True, False, False]
    assert CATALOGUE["rotary-angles-bfloat16"].concerns(BFLOAT16)


@pytest.mark.parametrize(("wrong", "said"), [(857.0, False), (150.0, True), (None, True)])
def test_what_rounds_coarsely_is_not_said_to_depend_on_other_rows(
    wrong: float | None, said: bool
) -> None:
    """Products in TF32 round otherwise in a batch of another size: by less than they are off."""
    findings = [Finding("batch.sizes", Status.FAILED, "other rows", "logits", 115.0, 14.0)]
    if wrong is not None:
        findings.append(Finding("logits", Status.FAILED, "off", "logits", wrong, 10.0))
    assert [cause.fault for cause in depends(findings)] == ["depends-on"] * said


def test_what_depends_on_later_tokens_says_which() -> None:
    sight = "position 0 sees position 1"
    failed = Finding(
        "causality.bits", Status.FAILED, "leaks", "logits", 50.0, 14.0, details={"sight": sight}
    )
    (cause,) = depends([failed])
    assert cause.note.startswith(f"later tokens: {sight}, by 50")
