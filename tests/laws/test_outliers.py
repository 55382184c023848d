"""One logit, one token or one position that is wrong, of which a mean over all is silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from models import checkpoint
from numpy.typing import NDArray
from strategies import Case, cases, scaled

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.outliers import Outliers
from gpt_verify.inputs import Input, seeded
from gpt_verify.laws.logits.check import LogitsComparison
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.reference import Config

#: A vocabulary in which one token in a mean is nothing.
WIDE = Config(n_vocab=3001, n_ctx=40, n_embd=12, n_head=3, n_layer=2)
SOURCE = checkpoint(WIDE)
INPUTS = [seeded(WIDE, length, 0) for length in (1, 7, 19, 40)]
INPUTS += [seeded(WIDE, 40, seed) for seed in range(1, 12)]
Alter = Any


def compared(source: Checkpoint, inputs: list[Input], dtype: str, alter: Alter = None) -> Finding:
    """The law of the logits on transformers' port, whose logits are altered."""
    port = huggingface(source, "sdpa", dtype)  # type: ignore[arg-type]
    precision = PRECISIONS[dtype]
    weights = DeclaredWeights(source.tensors, precision)
    found = LogitsComparison(source.config, weights, precision)
    for i, item in enumerate(inputs):
        logits = np.array(port.logits(item.tokens))
        if alter is not None:
            alter(i, logits)
        found.add(item.tokens, logits)
    (finding,) = found.findings()
    return finding


def one_token(i: int, logits: NDArray[Any]) -> None:
    logits[..., 7] += 3e-4


def the_last_token(i: int, logits: NDArray[Any]) -> None:
    logits[..., -1] -= 3e-4


def one_logit(i: int, logits: NDArray[Any]) -> None:
    if i == 2:
        logits[0, 11, 2999] += 1e-3


def one_position(i: int, logits: NDArray[Any]) -> None:
    if i == 3:
        logits[0, 39] *= 1.00005


def a_shift_beside_it(i: int, logits: NDArray[Any]) -> None:
    logits += 3.0
    one_token(i, logits)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (one_token, "at token 7 (limit"),
        (the_last_token, "at token 3000 (limit"),
        (one_logit, "at logits[input 2, row 0, position 11, token 2999] alone (limit"),
        (one_position, "at logits[input 3, row 0, position 39"),
        (a_shift_beside_it, "at token 7 (limit"),
    ],
)
def test_what_a_mean_hides_is_refuted(alter: Alter, words: str) -> None:
    finding = compared(SOURCE, INPUTS, "float32", alter)
    assert finding.status is Status.FAILED
    assert finding.details["rms"]["score"] <= LIMIT_FLOORS  # the mean over all of them is silent
    assert words in finding.message, finding.message


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_correct_port_is_far_from_every_limit(dtype: str) -> None:
    finding = compared(SOURCE, INPUTS, dtype)
    assert finding.status is Status.PASSED, finding.message
    assert set(finding.details) == {"rms", "token", "position", "max"}
    for name, found in finding.details.items():
        assert found["score"] <= found["limit"] / 3, name


def test_a_constant_at_each_position_is_no_error() -> None:
    def shifted(i: int, logits: NDArray[Any]) -> None:
        logits += np.arange(1.0, 1.0 + logits.shape[1], dtype=np.float32)[:, None] / 64

    finding = compared(SOURCE, INPUTS, "float32", shifted)
    assert finding.status is Status.PASSED, finding.message
    assert finding.message.startswith("equal up to a constant")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_right(value: float) -> None:
    def broken(i: int, logits: NDArray[Any]) -> None:
        if i == 3:
            logits[0, 17, 5] = value

    assert compared(SOURCE, INPUTS, "float32", broken).status is Status.FAILED


def test_tiles_are_the_whole() -> None:
    """In tiles as at once, as far as the constant that is taken out hangs on the first one."""
    rng = np.random.default_rng(0)
    deviations = rng.standard_normal((3, 8, 4000))
    deviations[0, :, 3500] *= 40
    found = []
    for step in (4000, 1000):
        gathered = Outliers(4000, LIMIT_FLOORS)
        row = gathered.row((0, 0))
        for first in range(0, 4000, step):
            row.add(first, deviations[..., first : first + step])
        row.done()
        found.append({s.name: s for s in gathered.statistics()})
    for name, whole in found[0].items():
        assert found[1][name].score == pytest.approx(whole.score, rel=0.2), name
    assert found[1]["token"].where == 3500


@scaled(15)
@given(cases())
def test_no_correct_port_stands_out(case: Case) -> None:
    """Of any model and regime, in every precision."""
    source = case.model.checkpoint()
    finding = compared(source, case.inputs, case.dtype)
    if finding.details["rms"]["score"] <= LIMIT_FLOORS:  # what else is wrong, other tests say
        assert finding.status is Status.PASSED, finding.message


def test_a_large_vocabulary_costs_no_more_than_its_tiles() -> None:
    """Nothing of the size of positions by vocabulary is kept."""
    gathered = Outliers(3001, LIMIT_FLOORS)
    kept = [v for v in vars(gathered).values() if isinstance(v, np.ndarray)]
    assert sum(v.size for v in kept) == 3001
