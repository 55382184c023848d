"""A sequence alone, in a batch and in any order; what leaks between rows is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import checkpoint
from plain_ports import faulty, plain
from strategies import scaled
from subjects import hold, port

from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.agreement import LIMIT_PAIR
from gpt_verify.laws.batch.check import SIZES
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.ports.callable import CallablePort
from gpt_verify.reference import Config

#: Fault → what the finding says.
NAMED = {
    "positions-run-on": "positions run on from row to row",
    "attended-as-one": "a row sees the rows before it",
    "as-one-sequence": "the batch is taken for one sequence",
    "every-row": "every row sees all rows, up to its own position",
    "first-row-for-all": "every row sees the first one in place of itself",
    "norm-over-rows": "layer norm takes its statistics over all rows",
    "rows-reversed": "row 0 is given the logits of row 2",
    "last-row": "the last row is wrong, whichever it is",
    "single-row": "it is the row alone that is wrong",
}
#: Those that half precision does not hide.
COARSE = [name for name in NAMED if name not in ("norm-over-rows", "single-row")]


def rows_averaged(model: Any) -> None:
    """A thousandth of the mean over the batch leaks into every row; it has no name."""

    def embed(self: Any, right: Any, ids: Any, positions: Any) -> Any:
        x = right(ids, positions)
        return torch.lerp(x, x.mean(0, keepdim=True), 1e-3)

    wrap(model, "embed", embed)


def test_every_fault_of_the_catalogue_is_here() -> None:
    family = {name for name, fault in CATALOGUE.items() if fault.law == "batch"}
    assert family == {f"batch-{name}" for name in NAMED}


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    assert finding.id == "batch"
    return finding


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [port, lambda **k: port(attention="sdpa", **k), plain])
def test_a_correct_port_passes(make: Any, dtype: str) -> None:
    finding = only(hold("batch", make(dtype=dtype)))
    assert finding.status is Status.PASSED, finding.message
    assert finding.message.startswith("rows of 6 tokens and 1 token alone, in batches of three")
    assert "on which their bits do not depend" in finding.message
    assert ("same bits" in finding.message) == (finding.score == 0.0)
    assert finding.score is not None and finding.score < 3


def test_a_port_that_shows_nothing_but_logits_is_examined() -> None:
    for attention, status in (("eager", Status.PASSED), ("sdpa", Status.PASSED)):
        function = CallablePort(port(attention=attention).logits, "function", None)
        assert only(hold("batch", function)).status is status
    altered = CallablePort(faulty("batch-rows-reversed").logits, "function", None)
    assert only(hold("batch", altered)).status is Status.FAILED


@pytest.mark.parametrize(
    "config",
    [
        Config(n_vocab=1, n_ctx=1, n_embd=4, n_head=1, n_layer=2),
        Config(n_vocab=2, n_ctx=2, n_embd=3, n_head=1, n_layer=1),
        Config(n_vocab=11, n_ctx=9, n_embd=6, n_head=1, n_layer=5),
        Config(n_vocab=101, n_ctx=120, n_embd=2, n_head=2, n_layer=1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_odd_sizes(config: Config, dtype: Any) -> None:
    for seed in range(3):
        source = checkpoint(config, seed, scale=1.5)
        finding = only(hold("batch", port(dtype=dtype, source=source), source, seed))
        assert finding.status is Status.PASSED, finding.message


@pytest.mark.parametrize("name", NAMED)
def test_each_leak_is_refuted_and_named(name: str) -> None:
    finding = only(hold("batch", faulty(f"batch-{name}")))
    assert finding.status is Status.FAILED
    assert NAMED[name] in finding.message
    assert finding.fault == f"batch-{name}"
    assert finding.score is not None and finding.score > 50 * LIMIT_PAIR
    assert finding.details["wrong"] <= finding.details["rows"] == 9


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_too(name: str, dtype: Any) -> None:
    finding = only(hold("batch", faulty(f"batch-{name}", dtype)))
    assert finding.status is Status.FAILED
    assert NAMED[name] in finding.message


def test_a_leak_that_has_no_name_is_described() -> None:
    finding = only(hold("batch", plain(rows_averaged)))
    assert finding.status is Status.FAILED
    assert "a row depends on the rows beside it: they share something" in finding.message
    assert finding.fault is None


def test_a_leak_below_rounding_is_said() -> None:
    """bfloat16 hides a thousandth; that the bits depend on the neighbours does not stay unsaid."""
    finding = only(hold("batch", plain(rows_averaged, "bfloat16")))
    assert finding.status is Status.PASSED
    assert "on which their bits depend" in finding.message
    assert finding.details["neighbours_keep_bits"] is False


def test_one_row_for_three_is_no_batch() -> None:
    function = CallablePort(lambda tokens: port().logits(tokens[:1]), "function", None)
    finding = only(hold("batch", function))
    assert finding.status is Status.FAILED
    assert finding.message == "logits of 6 tokens have shape [1, 6, 101], not [3, 6, 101]"


def test_the_port_is_left_as_it_was() -> None:
    judged = port()
    tokens = np.arange(6)[None]
    before = judged.logits(tokens)
    hold("batch", judged)
    assert judged.logits(tokens).tobytes() == before.tobytes()
    assert judged.training() == []


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [port, lambda **k: port(attention="sdpa", **k), plain])
def test_a_correct_port_passes_at_every_size(make: Any, dtype: str) -> None:
    (finding,) = hold("batch.sizes", make(dtype=dtype))
    assert finding.status is Status.PASSED, finding.message
    assert finding.score is not None and finding.score < 3
    assert finding.details["comparisons"] == sum(SIZES)


@given(st.integers(0, 32), st.booleans())
@scaled(12)
def test_what_is_wrong_at_some_sizes_is_refuted(at: int, above: bool) -> None:
    """Above any number of rows; or in one row of every batch, which is told as well."""
    right = plain()

    def logits(tokens: Any) -> Any:
        made = right.logits(tokens)
        if above and len(tokens) > max(at, 1):
            made *= np.float32(1.001)
        elif not above and len(tokens) > at > 0:
            made[at] *= np.float32(1.001)
        return made

    (finding,) = hold("batch.sizes", CallablePort(logits, "function", None))
    wrong = above or at > 0
    assert finding.status is (Status.FAILED if wrong else Status.PASSED)
    if above and at >= SIZES[0]:
        assert finding.fault == "batch-large"
    elif wrong and not above:
        assert finding.fault is None


def test_the_fault_of_large_batches_is_named() -> None:
    (finding,) = hold("batch.sizes", faulty("batch-large"))
    assert finding.fault == "batch-large"
    assert (
        "wrong in batches of 9, 16, 17, 32 … rows, and right in those of 4, 5, 8" in finding.message
    )
    assert only(hold("batch", faulty("batch-large"))).status is Status.PASSED


def test_one_call_that_is_wrong_is_no_matter_of_the_batch() -> None:
    right, calls = plain(), [0]

    def logits(tokens: Any) -> Any:
        calls[0] += 1
        return right.logits(tokens) * np.float32(1.01 if calls[0] == 2 else 1)

    finding = only(hold("batch", CallablePort(logits, "function", None)))
    assert finding.status is Status.FAILED
    assert finding.fault is None
    assert "other logits when it is asked for again" in finding.message
