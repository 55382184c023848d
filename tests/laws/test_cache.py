"""Decoding in pieces against the full pass: what is wrong with a cache is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port

from gpt_verify.faults.model import Options
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.agreement import LIMIT_PAIR
from gpt_verify.laws.cache import check as cache
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.port import STEP, Floats, Port, Tokens
from gpt_verify.ports.callable import CallablePort
from gpt_verify.reference import Config

#: Fault → what the finding says.
NAMED = {
    "positions-restart": "position 1 is decoded at position 0: positions restart at every call",
    "positions-stuck": "position 2 is decoded at position 1: positions do not advance with the "
    "cache",
    "positions-of-calls": "position 2 is decoded at position 1: positions count the calls, not the "
    "tokens",
    "position-of-call": "position 2 is decoded at position 1: positions do not advance within a "
    "call",
    "positions-ahead": "position 1 is decoded at position 2: positions after a cache are one too "
    "far",
    "positions-behind": "position 1 is decoded at position 0: positions after a cache are one "
    "short",
    "last-position-clipped": "the last position of the context is decoded at the one before it",
    "not-read": "the cache is not read: a call sees its own tokens only",
    "first-token-lost": "the first token is lost from the cache",
    "newest-lost": "the newest entry of the cache is lost at every call, and positions are "
    "counted in what is left of it",
    "oldest-lost": "the oldest entry of the cache is lost at every call, and positions are "
    "counted in what is left of it",
    "no-mask": "the tokens of one call see each other's future",
    "mask-upper-left": "the mask is aligned with the oldest cached token",
    "window": "a token sees only the last 12, itself included",
    "of-last-block": "every block reads the cache of the last one",
    "of-first-block": "every block reads the cache of the first one",
    "keys-as-values": "values are taken for keys and keys for values",
    "bfloat16": "keys and values are kept in bfloat16",
    "float16": "keys and values are kept in float16",
    "rows-exchanged": "rows are mixed up, each reads the other's cache",
}
#: Those that half precision hides.
FINE = ("bfloat16", "float16")


def test_every_fault_of_the_catalogue_is_here() -> None:
    family = {name for name, fault in CATALOGUE.items() if fault.family == "cache"}
    assert family == {f"cache-{name}" for name in NAMED}


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    assert finding.id == "cache"
    return finding


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [port, lambda **k: port(attention="sdpa", **k), plain])
def test_a_correct_cache_passes(make: Any, dtype: str) -> None:
    finding = only(hold("cache", make(dtype=dtype)))
    assert finding.status is Status.PASSED, finding.message
    assert finding.message.startswith(
        "30 splits of 8 tokens, two rows at once, 19 tokens one by one: "
    )
    assert ("same bits" in finding.message) == (finding.score == 0.0)
    assert finding.score is not None and finding.score < 3


@pytest.mark.parametrize(
    "config",
    [
        Config(n_vocab=1, n_ctx=3, n_embd=4, n_head=1, n_layer=2),
        Config(n_vocab=2, n_ctx=2, n_embd=3, n_head=1, n_layer=1),
        Config(n_vocab=11, n_ctx=9, n_embd=6, n_head=1, n_layer=5),
        Config(n_vocab=101, n_ctx=40, n_embd=2, n_head=2, n_layer=1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_odd_sizes(config: Config, dtype: Any) -> None:
    for seed in range(3):
        source = checkpoint(config, seed, scale=1.5)
        for made in (port(dtype=dtype, source=source), plain(dtype=dtype, source=source)):
            finding = only(hold("cache", made, source, seed))
            assert finding.status is Status.PASSED, finding.message


def test_one_token_cannot_be_split() -> None:
    source = checkpoint(Config(n_vocab=5, n_ctx=1, n_embd=4, n_head=2, n_layer=1))
    finding = only(hold("cache", port(source=source), source))
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "a context of one token cannot be split"


def test_a_port_without_a_cache_is_not_examined() -> None:
    finding = only(hold("cache", CallablePort(port().logits, "function", None)))
    assert (finding.status, finding.message) == (Status.NOT_EXAMINED, "no cache")


@pytest.mark.parametrize("name", NAMED)
def test_each_mistake_is_refuted_and_named(name: str) -> None:
    finding = only(hold("cache", faulty(f"cache-{name}")))
    assert finding.status is Status.FAILED
    assert NAMED[name] in finding.message
    assert finding.fault == f"cache-{name}"
    assert finding.message.startswith("logits[")
    assert finding.score is not None and finding.score > 30 * LIMIT_PAIR
    assert finding.limit == LIMIT_PAIR


@pytest.mark.parametrize("name", [n for n in NAMED if n not in FINE])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_too(name: str, dtype: Any) -> None:
    finding = only(hold("cache", faulty(f"cache-{name}", dtype)))
    assert finding.status is Status.FAILED
    assert NAMED[name] in finding.message


def test_a_fused_attention_with_the_mask_at_the_wrong_corner() -> None:
    altered = faulty("cache-mask-upper-left", options=Options(fused=True))
    finding = only(hold("cache", altered))
    assert "is_causal with a cache" in finding.message


def test_the_last_positions_of_a_long_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where decoding all of it would take too long."""
    monkeypatch.setattr(cache, "READS", 1)
    monkeypatch.setattr(cache, "FEWEST", 11)
    finding = only(hold("cache", plain()))
    assert finding.status is Status.PASSED
    assert "11 tokens one by one, the last two of 19: " in finding.message
    finding = only(hold("cache", faulty("cache-last-position-clipped")))
    assert finding.status is Status.FAILED
    assert finding.message.startswith("logits[18, ")
    assert "(decoded as 17 + 1 + 1; " in finding.message
    assert "the last position of the context is decoded at the one before it" in finding.message


class Stepping(Port):
    """A correct port whose steps are changed on their way out."""

    name = "stepping"

    def __init__(self, change: Any) -> None:
        self._port = plain()
        self.logits = self._port.logits
        self.step = lambda tokens, kept: self._changed(change, tokens, kept)

    def _changed(self, change: Any, tokens: Tokens, kept: Any) -> tuple[Floats, Any]:
        logits, kept = self._port.offers()[STEP](tokens, kept)
        return change(logits), kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, -1:], "decoded as 8 have shape [1, 1, 101], not [1, 8, 101]"),
        (lambda x: x * np.nan, "logits[0, 0, 0] = nan decoded as 8: not a finite number"),
        (lambda x: x.astype(int), "decoded as 8 have dtype int64, not a floating-point type"),
        (lambda x: 1 / 0, "the port raised ZeroDivisionError"),
    ],
)
def test_what_is_no_logits_is_refuted(change: Any, words: str) -> None:
    finding = only(hold("cache", Stepping(change)))
    assert finding.status is Status.FAILED
    assert words in finding.message


def test_memory_that_a_port_uses_again_hides_nothing() -> None:
    """A port whose full pass and whose steps share one buffer is not compared with itself."""
    buffer = np.zeros((1, CONFIG.n_ctx, CONFIG.n_vocab), np.float32)
    altered = faulty("cache-positions-restart")
    full, step = altered.logits, altered.offers()[STEP]
    assert step is not None

    def kept(logits: Floats) -> Floats:
        buffer[:, : logits.shape[1]] = logits[:1]
        return buffer[:, : logits.shape[1]]

    def into_buffer(tokens: Tokens, past: Any) -> tuple[Floats, Any]:
        logits, past = step(tokens, past)
        return kept(logits), past

    altered.logits = lambda tokens: kept(full(tokens))  # type: ignore[method-assign]
    altered.offer(STEP, into_buffer)
    finding = only(hold("cache", altered))
    assert finding.status is Status.FAILED
    assert "positions restart" in finding.message


def test_the_port_is_left_as_it_was() -> None:
    judged = port()
    tokens = np.arange(6)[None]
    before, weights = judged.logits(tokens), [p.read() for p in judged.parameters()]
    hold("cache", judged)
    assert judged.logits(tokens).tobytes() == before.tobytes()
    for parameter, value in zip(judged.parameters(), weights, strict=True):
        assert parameter.read().tobytes() == value.tobytes()
    assert judged.training() == []


@pytest.mark.parametrize(("n", "count"), [(2, 2), (3, 4), (4, 8), (8, 30)])
def test_every_split_into_two_and_into_three(n: int, count: int) -> None:
    splits = cache.splits_of(n)
    assert len(splits) == len(set(splits)) == count
    assert all(sum(lengths) == n and min(lengths) > 0 for lengths in splits)
    assert (n,) in splits and (1,) * n in splits


def test_what_holds_for_a_single_token_alone_says_so() -> None:
    """Calls of several tokens are right after a cache as well."""

    def alter(model: Any) -> None:
        right = model.positions
        model.positions = lambda ids, past, real: (
            right(ids, past, real) - int(past > 0 and ids.shape[1] == 1)
        )

    (finding,) = hold("cache", plain(alter))
    assert finding.status is Status.FAILED
    assert "in a call of a single token positions after a cache are one short" in finding.message
    assert finding.fault == "cache-positions-behind"
