"""A port that is wrong at one length, from some call on, or now and then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import CONFIG, INPUTS, checkpoint, failed_laws
from plain_ports import faulty, plain
from strategies import scaled
from subjects import hold, port, subject

from gpt_verify.findings import Finding, Status, Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.calls import check as calls_law
from gpt_verify.laws.calls.check import FEWEST, check_many
from gpt_verify.laws.lengths.check import LARGE, chosen, longest
from gpt_verify.laws.subject import FirstCall
from gpt_verify.ports.callable import CallablePort

pytestmark = pytest.mark.usefixtures("many_calls")

#: ``gpt_verify.laws.calls.check.MOST``, which is less in other tests.
MOST = 352
LONG = replace(CONFIG, n_ctx=97)
SOURCE = checkpoint(LONG)


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def altered(wrong: Any, factor: float = 1.001) -> CallablePort:
    """Logits alone, off where ``wrong(number of the call, tokens)``."""
    right, calls = plain(source=SOURCE), [0]

    def logits(tokens: Any) -> Any:
        calls[0] += 1
        off = wrong(calls[0], tokens)
        return right.logits(tokens) * np.float32(factor if off else 1)

    return CallablePort(logits, "function", None)


@pytest.mark.parametrize("law", ["lengths", "calls"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [port, lambda **k: port(attention="sdpa", **k), plain])
def test_a_correct_port_passes(make: Any, dtype: str, law: str) -> None:
    finding = only(hold(law, make(dtype=dtype)))
    assert finding.status is Status.PASSED, finding.message
    assert finding.score is not None and finding.score < 3


@scaled(12)
@given(st.integers(1, LONG.n_ctx - 1))
def test_any_one_length_of_a_small_model_is_found(length: int) -> None:
    finding = only(hold("lengths", altered(lambda call, x: x.shape[1] == length), SOURCE))
    assert finding.status is Status.FAILED
    assert finding.details["wrong"] == [length]
    assert finding.fault == "lengths-one"


def test_all_of_a_context_that_is_wrong_is_no_single_length() -> None:
    finding = only(hold("lengths", altered(lambda call, x: x.shape[1] == LONG.n_ctx), SOURCE))
    assert finding.status is Status.FAILED
    assert finding.fault is None
    assert "lengths that were tried, or in the whole" in finding.message


def test_one_wrong_call_is_no_matter_of_its_length() -> None:
    finding = only(hold("lengths", altered(lambda call, x: call == 30), SOURCE))
    assert finding.status is Status.FAILED
    assert finding.fault is None
    assert "right when it is asked for again" in finding.message


def test_longer_lengths_of_a_large_model_are_drawn_with_the_seed() -> None:
    large = replace(LONG, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_vocab=50257)
    tried = []
    for seed in range(3):
        held = subject(plain(), seed=seed)
        held.checkpoint = replace(held.checkpoint, config=large)
        tried.append(set(chosen(held, longest(large))))
    assert longest(large) == LARGE < large.n_ctx
    assert all(set(range(1, 22)) <= lengths for lengths in tried)
    assert all(sum(lengths) <= 2 * LARGE for lengths in tried)
    assert all(max(lengths) > 23 for lengths in tried)
    assert len({frozenset(lengths) for lengths in tried}) == 3


def test_a_context_of_one_token_has_one_length() -> None:
    source = checkpoint(replace(CONFIG, n_ctx=1))
    assert only(hold("lengths", plain(source=source), source)).status is Status.NOT_EXAMINED


def test_so_many_calls_are_made() -> None:
    assert calls_law.MOST == MOST


@scaled(12)
@given(st.integers(5, MOST))
def test_wrong_from_some_call_on(last: int) -> None:
    finding = only(hold("calls", altered(lambda call, x: call > last), SOURCE))
    assert finding.status is Status.FAILED
    assert finding.fault == "calls-worn-out"


@scaled(8)
@given(st.integers(5, MOST // 2))
def test_wrong_now_and_then(every: int) -> None:
    finding = only(hold("calls", altered(lambda call, x: call % every == 0), SOURCE))
    assert finding.status is Status.FAILED
    assert finding.fault == "calls-now-and-then"


def test_one_logit_at_every_97th_call() -> None:
    right, calls = plain(source=SOURCE), [0]

    def logits(tokens: Any) -> Any:
        calls[0] += 1
        made = np.array(right.logits(tokens))
        made[0, 0, 11] += np.float32(1e-2) * (calls[0] % 97 == 0)
        return made

    finding = only(hold("calls", CallablePort(logits, "function", None), SOURCE))
    assert finding.status is Status.FAILED
    assert f"wrong at {(MOST + 1) // 97} of {MOST} calls, first at call 96" in finding.message


def test_what_a_run_began_with_is_asked_for_again() -> None:
    """Worn out before the law makes its first call, which then knows nothing else."""
    right = plain()
    tokens_T = np.array([3, 1, 4])
    last_V = np.array(right.logits(tokens_T[None])[0, -1])
    for factor, status in ((1.0, Status.PASSED), (1.001, Status.FAILED)):
        held = subject(right)
        held.first_call = FirstCall(tokens_T, last_V * np.float32(factor))
        finding = only(check_many(held))
        assert finding.status is status
        assert finding.fault is None
        assert ("what the run began with" in finding.message) == (factor != 1.0)


def test_a_large_model_is_called_less_often() -> None:
    right = plain()
    held = subject(right)
    large = replace(CONFIG, n_embd=1600, n_head=25, n_layer=48, n_vocab=50257)
    count = [0]

    def logits(tokens: Any) -> Any:
        count[0] += 1
        return np.zeros((1, 1, large.n_vocab), np.float32)

    held.port = CallablePort(logits, "function", None)
    held.checkpoint = replace(held.checkpoint, config=large)
    assert only(check_many(held)).status is Status.PASSED
    assert count[0] == FEWEST + 1


@pytest.mark.parametrize("name", ["lengths-one", "calls-worn-out", "calls-now-and-then"])
def test_the_faults_are_named_by_their_laws(name: str) -> None:
    made = faulty(name)
    assert only(hold(name.partition("-")[0], made)).fault == name


def test_a_whole_run_refutes_a_port_that_is_worn_out() -> None:
    """Whose weights, sites and logits are correct, and all that is looked at before."""
    made = altered(lambda call, x: call > 300)
    report = judge("worn", SOURCE, INPUTS, None, "cpu", Silent(), build=lambda: made)
    assert report.verdict is Verdict.REFUTED
    assert "calls" in failed_laws(report)
