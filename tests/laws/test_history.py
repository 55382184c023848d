"""What a port makes of some tokens does not hang on what it did before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port, subject

from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.history.check import check_history
from gpt_verify.laws.history.faults import FAULTS
from gpt_verify.laws.history.prompts import check_prompts, pairs
from gpt_verify.laws.subject import FirstCall
from gpt_verify.port import STEP
from gpt_verify.ports.callable import CallablePort

DTYPES = ["float64", "float32", "bfloat16", "float16"]
LONG = replace(CONFIG, n_ctx=97)
SOURCE = checkpoint(LONG)


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def function(logits: Any) -> CallablePort:
    return CallablePort(logits, "function", None)


@pytest.mark.parametrize("law", ["history", "history.prompts"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [port, lambda **k: port(attention="sdpa", **k), plain])
def test_a_correct_port_passes(make: Any, dtype: str, law: str) -> None:
    finding = only(hold(law, make(dtype=dtype)))
    assert finding.status is Status.PASSED, finding.message


def test_all_that_a_port_can_do_is_done() -> None:
    words = only(hold("history", plain())).message
    for what in ("cache", "longer", "single", "batch", "mask", "labels", "does not exist"):
        assert what in words
    assert "cache" not in only(hold("history", function(plain().logits))).message


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_each_fault_is_named(name: str) -> None:
    law = CATALOGUE[name].law
    assert law is not None
    finding = only(hold(law, faulty(name)))
    assert finding.status is Status.FAILED
    assert finding.fault == name


class Server:
    """Keeps keys and values of the last prompt, and reuses those of a common beginning.

    Args:
        same: how many first tokens of a new prompt are taken to be those of the old one.
    """

    def __init__(self, same: Any) -> None:
        self._port, self._same = plain(source=SOURCE), same
        self._last = np.zeros((1, 0), np.int64)

    def __call__(self, tokens: Any) -> Any:
        if len(tokens) != 1:
            return self._port.logits(tokens)
        kept = min(self._same(self._last[0], tokens[0]), tokens.shape[1] - 1)
        old, self._last = self._last, tokens.copy()
        if not kept:
            return self._port.logits(tokens)
        step = self._port.offers()[STEP]
        first, cache = step(old[:, :kept], None)
        return np.concatenate([first, step(tokens[:, kept:], cache)[0]], axis=1)


def common(old: Any, new: Any) -> int:
    """How many first tokens really are the same."""
    n = min(len(old), len(new))
    return int(np.cumprod(old[:n] == new[:n]).sum())


def blocks(size: int, key: int) -> Any:
    """Blocks of some tokens, each known by its first ones alone."""

    def same(old: Any, new: Any) -> int:
        found, n = 0, min(len(old), len(new))
        while found + size <= n and (old[found : found + key] == new[found : found + key]).all():
            found += size
        return found

    return same


def of_one_length(old: Any, new: Any) -> int:
    return len(new) if len(old) == len(new) else 0


def of_one_sum(old: Any, new: Any) -> int:
    return len(new) if len(old) == len(new) and old.sum() == new.sum() else 0


@pytest.mark.parametrize(
    "same",
    [blocks(8, 4), blocks(16, 8), blocks(32, 16), blocks(8, 1), of_one_length, of_one_sum],
    ids=["8 by 4", "16 by 8", "32 by 16", "8 by 1", "length", "sum"],
)
def test_a_prompt_that_is_taken_for_another_is_named(same: Any) -> None:
    finding = only(hold("history.prompts", function(Server(same)), SOURCE))
    assert finding.status is Status.FAILED
    assert finding.fault == "history-prompt-stale"


@pytest.mark.parametrize("same", [common, blocks(8, 8), blocks(16, 16)], ids=["any", "8", "16"])
@pytest.mark.parametrize("law", ["history", "history.prompts"])
def test_a_correct_cache_of_prompts_passes(law: str, same: Any) -> None:
    finding = only(hold(law, function(Server(same)), SOURCE))
    assert finding.status is Status.PASSED, finding.message


def by_its_own_tokens(size: int) -> Any:
    """A block is known by its own tokens and its place, whatever is before it."""
    right = plain(source=SOURCE)
    kept: dict[Any, Any] = {}

    def logits(tokens: Any) -> Any:
        made = np.array(right.logits(tokens))
        for begin in range(0, tokens.shape[1] - size, size) if len(tokens) == 1 else ():
            key = begin, tokens[0, begin : begin + size].tobytes()
            kept.setdefault(key, made[0, begin : begin + size].copy())
            made[0, begin : begin + size] = kept[key]
        return made

    return function(logits)


def test_a_block_that_is_known_whatever_is_before_it_is_refuted() -> None:
    held = subject(by_its_own_tokens(4), SOURCE)
    finding = only(check_prompts(held))
    assert finding.status is Status.FAILED
    assert finding.fault is None
    # That it is not wrong by itself, a port that is built anew tells.
    held = subject(by_its_own_tokens(4), SOURCE)
    held.build = lambda: by_its_own_tokens(4)
    assert only(check_prompts(held)).fault == "history-prompt-stale"


def test_every_prompt_is_another_one() -> None:
    for config in (CONFIG, LONG, replace(CONFIG, n_ctx=2), replace(CONFIG, n_ctx=1, n_vocab=2)):
        found = pairs(subject(plain(source=checkpoint(config)), checkpoint(config)))
        assert found
        for pair in found:
            assert (pair.first_T != pair.second_T).any()
            assert (pair.first_T[: pair.common] == pair.second_T[: pair.common]).all()
    commons = [pair.common for pair in pairs(subject(plain(source=SOURCE), SOURCE))]
    assert commons[:4] == [4, 8, 16, 64]


def test_a_port_that_is_wrong_elsewhere_is_not_blamed() -> None:
    for name in ("gelu-erf", "norm-eps-1e-6", "calls-now-and-then"):
        made = faulty(name)
        for law in ("history", "history.prompts"):
            assert only(hold(law, made)).status is not Status.FAILED


def test_what_differs_at_every_call_is_no_history() -> None:
    right, rng = plain(), np.random.default_rng(0)
    made = function(lambda tokens: right.logits(tokens) * np.float32(1 + rng.normal() / 10))
    finding = only(hold("history", made))
    assert finding.status is Status.NOT_EXAMINED


def test_a_call_that_is_wrong_by_chance_is_refuted_and_not_named() -> None:
    right, calls = plain(), [0]

    def logits(tokens: Any) -> Any:
        calls[0] += 1
        return right.logits(tokens) * np.float32(2 if calls[0] == 5 else 1)

    finding = only(hold("history", function(logits)))
    assert finding.status is Status.FAILED
    assert finding.fault is None
    assert "nothing is wrong" in finding.message


def test_a_port_that_breaks_is_refuted() -> None:
    right, broken = plain(), [False]

    def logits(tokens: Any) -> Any:
        if broken[0]:
            raise RuntimeError("the session is closed")
        broken[0] = bool((tokens >= CONFIG.n_vocab).any())
        return right.logits(tokens)

    finding = only(hold("history", function(logits)))
    assert finding.status is Status.FAILED
    assert finding.fault == "history-after-refusal"
    assert "after an id that does not exist the port cannot be used any more" in finding.message


def test_the_first_input_of_the_run_is_asked_for_at_the_end() -> None:
    right, tokens_T = plain(), np.array([3, 1, 4])
    last_V = np.array(right.logits(tokens_T[None])[0, -1])
    for factor, status in ((1.0, Status.PASSED), (1.001, Status.FAILED)):
        held = subject(right)
        held.first_call = FirstCall(tokens_T, last_V * np.float32(factor))
        assert only(check_history(held)).status is status
