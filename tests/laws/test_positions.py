"""The end of the position table: taken up to it, refused beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import positions_faults as faults
import pytest
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port

from gpt_verify.errors import PortError
from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.port import Port
from gpt_verify.ports.callable import CallablePort
from gpt_verify.reference import Config
from gpt_verify.reference import logits as reference_logits

DTYPES = ["float64", "float32", "bfloat16", "float16"]
ODD = [
    Config(n_vocab=1, n_ctx=1, n_embd=4, n_head=1, n_layer=2),
    Config(n_vocab=2, n_ctx=2, n_embd=3, n_head=1, n_layer=1),
    Config(n_vocab=11, n_ctx=9, n_embd=6, n_head=1, n_layer=5),
    Config(n_vocab=101, n_ctx=40, n_embd=2, n_head=2, n_layer=1),
]


def only(found: list[Finding], law: str) -> Finding:
    (finding,) = found
    assert finding.id == law
    return finding


def limit(judged: Port, *source: Any) -> Finding:
    return only(hold("positions.limit", judged, *source), "positions.limit")


def beyond(judged: Port, *source: Any) -> Finding:
    return only(hold("positions.beyond", judged, *source), "positions.beyond")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_correct_port_takes_n_ctx_and_no_more(attention: str, dtype: Any) -> None:
    judged = port(attention=attention, dtype=dtype)
    finding = limit(judged)
    assert finding.status is Status.PASSED
    assert finding.message.startswith("19 tokens: logits[18, ")
    assert finding.score is not None and finding.score < 3
    finding = beyond(judged)
    assert finding.status is Status.PASSED
    refusal = "IndexError: index out of range in self"
    assert finding.message == f"20 tokens are refused: {refusal}; with a cache: {refusal}"


@pytest.mark.parametrize("config", ODD, ids=lambda c: f"P{c.n_ctx}")
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_odd_sizes(config: Config, dtype: Any) -> None:
    for seed in range(3):
        source = checkpoint(config, seed, scale=1.5)
        for made in (port(dtype=dtype, source=source), plain(dtype=dtype, source=source)):
            for law in (limit, beyond):
                finding = law(made, source, seed)
                assert finding.status is Status.PASSED, finding.message


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_last_position_is_wrong(dtype: Any) -> None:
    finding = limit(plain(faults.last_position_repeats, dtype))
    assert finding.status is Status.FAILED
    assert finding.message.startswith("19 tokens: logits[18, ")
    assert finding.score is not None and finding.score > 2 * LIMIT_FLOORS


@pytest.mark.parametrize("name", ["mask_is_too_small", "full_context_refused"])
def test_a_whole_context_is_too_long(name: str) -> None:
    finding = limit(plain(getattr(faults, name)))
    assert finding.status is Status.FAILED
    raised = "the port raised ValueError: sequence too long"
    assert (finding.message == raised) == (name == "full_context_refused")


def test_what_is_wrong_everywhere_is_no_matter_of_positions() -> None:
    def scaled(model: Any) -> None:
        right = model.head
        model.head = lambda x: 1.01 * right(x)

    finding = limit(plain(scaled))
    assert finding.status is Status.NOT_EXAMINED
    assert "wrong from the beginning on" in finding.message


def test_not_a_number_is_no_logit() -> None:
    def nan(tokens: np.ndarray) -> np.ndarray:
        logits = port().logits(tokens)
        logits[:, 18:] = np.nan
        return logits

    finding = limit(CallablePort(nan, "nan", None))
    assert finding.status is Status.FAILED
    assert finding.message == "logits[0, 18, 0] = nan of 19 tokens: not a finite number"


WORDS = {
    "clipped": "position 19 is given row 18 of wpe, the last, once more (clipped)",
    "wrapped": "position 19 is given row 0 of wpe (wrapped round)",
    "zero": "position 19 is given zeros",
    "oldest-dropped": "the first one is dropped without a word",
    "newest-dropped": "the last one is dropped without a word",
}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_refused_is_named(name: str, dtype: Any) -> None:
    finding = beyond(faulty(f"positions-beyond-{name}", dtype))
    assert finding.status is Status.FAILED
    assert finding.message.startswith("20 tokens are not refused, n_ctx is 19: ")
    assert WORDS[name] in finding.message
    assert finding.fault == f"positions-beyond-{name}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.full((1, 20, 101), np.nan), "logits that are not finite are returned"),
        (lambda x: np.zeros((1, 3)), "logits of shape [1, 3] are returned"),
        (lambda x: np.ones((1, 20, 101)), "no row of wpe that could be recognised"),
    ],
)
def test_what_cannot_be_named_is_described(change: Any, words: str) -> None:
    right = port()

    def function(tokens: np.ndarray) -> np.ndarray:
        return change(tokens) if tokens.shape[1] > CONFIG.n_ctx else right.logits(tokens)

    finding = beyond(CallablePort(function, "function", None))
    assert finding.status is Status.FAILED
    assert words in finding.message


def test_a_cache_that_rolls_on_is_found() -> None:
    finding = beyond(faulty("positions-cache-rolls-on"))
    assert finding.status is Status.FAILED
    assert finding.message == (
        "with a cache of 19 tokens, one more is not refused: it is decoded at position 18, and the "
        "oldest is forgotten"
    )


def test_a_port_must_survive_its_refusal() -> None:
    finding = beyond(faulty("positions-refusal-breaks"))
    assert finding.status is Status.FAILED
    assert finding.message.endswith(
        "afterwards the port cannot be used any more: RuntimeError: device-side assert triggered"
    )


def test_a_refusal_of_any_kind_will_do() -> None:
    def function(tokens: np.ndarray) -> np.ndarray:
        source = checkpoint()
        return np.stack([reference_logits(source.tensors, CONFIG, row) for row in tokens])

    finding = beyond(CallablePort(function, "function", None))
    assert finding.status is Status.PASSED
    assert finding.message == "20 tokens are refused: ValueError: 20 tokens; the model takes 1 … 19"

    def own(tokens: np.ndarray) -> np.ndarray:
        if tokens.shape[1] > CONFIG.n_ctx:
            raise PortError("too long")
        return function(tokens)

    assert beyond(CallablePort(own, "own", None)).status is Status.PASSED


class OnGpu(Port):
    """A port that says it is on a GPU, where a lookup out of range must not be tried."""

    name, device = "gpu", "cuda"

    def __init__(self, has_copy: bool) -> None:
        self._cpu = port()
        if has_copy:
            self.elsewhere = self._elsewhere

    def logits(self, tokens: Any) -> Any:
        raise AssertionError("tried on the GPU")

    @contextmanager
    def _elsewhere(self, device: str) -> Iterator[Port]:
        assert device == "cpu"
        yield self._cpu


def test_on_a_gpu_it_is_tried_on_the_cpu_or_not_at_all() -> None:
    finding = beyond(OnGpu(has_copy=True))
    assert finding.status is Status.PASSED
    assert finding.message.startswith("20 tokens are refused (on the CPU): IndexError")
    finding = beyond(OnGpu(has_copy=False))
    assert finding.status is Status.NOT_EXAMINED
    assert "there is no CPU copy" in finding.message


def test_the_port_is_left_as_it_was() -> None:
    judged = port()
    tokens = np.arange(6)[None]
    before = judged.logits(tokens)
    limit(judged)
    beyond(judged)
    assert judged.logits(tokens).tobytes() == before.tobytes()


def test_what_lags_forgets_nothing() -> None:
    """A full cache takes one token more where positions lag; nothing is forgotten there."""
    finding = beyond(plain(faults.lags_after_a_cache))
    assert finding.status is Status.FAILED
    assert finding.message.endswith("it is decoded at position 18, as the token before it")
    assert finding.named is not None
    assert "positions-cache-rolls-on" not in finding.named.faults


def test_what_any_call_with_a_cache_does_is_not_for_a_refusal() -> None:
    finding = beyond(plain(faults.remembers_a_cache))
    assert finding.status is Status.FAILED
    assert finding.message.endswith(", as after any call with a cache")
    assert finding.named is None
    finding = only(hold("cache", plain(faults.remembers_a_cache)), "cache")
    assert "it depends on what was computed before" in finding.message
    assert "rows are mixed up" not in finding.message
