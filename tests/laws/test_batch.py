"""A sequence alone, in a batch and in any order; what leaks between rows is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint
from plain_ports import faulty, plain
from subjects import hold, port

from gpt_verify.faults.plant import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.agreement import LIMIT_PAIR
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
    family = {name for name, fault in CATALOGUE.items() if fault.family == "batch"}
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
