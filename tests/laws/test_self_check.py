"""A port that changes what it is checked against, in the process that it shares with its judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from models import INPUTS, checkpoint
from plain_ports import plain

from gpt_verify.checkpoint import Checkpoint, bundle
from gpt_verify.diagnosis.logits import deviations_kept
from gpt_verify.findings import PortReport, Verdict
from gpt_verify.graph import stored
from gpt_verify.graph.floor import measure_floor
from gpt_verify.graph.stored import self_check
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.numerics import scores
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights
from gpt_verify.port import Port
from gpt_verify.ports.callable import CallablePort
from gpt_verify.process.replaced import Watch
from gpt_verify.reference import model, ops
from gpt_verify.text import listing

Change = Callable[[], object]
TANH, MEAN = np.tanh, np.mean


def _code_of_gelu() -> None:
    ops.gelu.__code__ = (lambda x: 0.5 * x * (1.0 + x)).__code__


def _a_budget() -> None:
    scores.limit_max.__code__ = (lambda n: 1e9).__code__


def _default_of_forward() -> None:
    model.forward.__defaults__ = (np.float32, lambda x: x)


#: What is called in the message → how it is replaced.
CHANGES: dict[str, Change] = {
    "numpy.tanh": lambda: setattr(np, "tanh", lambda x: TANH(x) * 1.001),
    "numpy.mean": lambda: setattr(np, "mean", lambda x, **k: MEAN(x, **k)),
    "numpy.linalg.norm": lambda: setattr(np.linalg, "norm", lambda x: 0.0),
    "gpt_verify.reference.ops.GELU_CUBIC": lambda: setattr(ops, "GELU_CUBIC", 0.0447),
    "gpt_verify.reference.ops.gelu": _code_of_gelu,
    "gpt_verify.numerics.scores.limit_max": _a_budget,
    "gpt_verify.reference.model.forward": _default_of_forward,
    "gpt_verify.checkpoint.bundle.Bundle": lambda: setattr(bundle, "Bundle", dict),
}


def judged(build: Callable[[Checkpoint], Port], source: Checkpoint | None = None) -> PortReport:
    source = source or checkpoint()
    return judge(
        "port", source, INPUTS, None, "cpu", Silent(), build=lambda: build(source), laws=()
    )


def refused(report: PortReport, name: str) -> bool:
    """Unjudged, in one line that says what was changed; no number of that reference is reported."""
    assert report.verdict is Verdict.UNJUDGED
    assert report.error is not None and "\n" not in report.error
    assert report.logits_floors is None
    assert not report.explained_by
    return name in report.error


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_port_replaces_when_it_is_built_is_named_and_put_back(name: str) -> None:
    def build(source: Checkpoint) -> Port:
        CHANGES[name]()
        return plain(source=source)

    assert refused(judged(build), name)
    assert Watch().replaced() == []
    assert self_check() is None
    assert judged(lambda source: plain(source=source)).verdict is Verdict.VERIFIED


@pytest.mark.parametrize("name", ["numpy.tanh", "gpt_verify.reference.ops.gelu"])
def test_and_when_it_is_called(name: str) -> None:
    def build(source: Checkpoint) -> Port:
        right = plain(source=source)

        def logits(tokens: Any) -> Any:
            CHANGES[name]()
            return right.logits(tokens)

        return CallablePort(logits, "port", None)

    assert refused(judged(build), name)
    assert self_check() is None


def test_what_was_measured_meanwhile_is_not_kept_for_the_next_port() -> None:
    source = checkpoint()
    shared = SharedWeights(source.tensors, record=True)
    right = plain(source=source)

    def changing(tokens: Any) -> Any:
        found = right.logits(tokens)
        CHANGES["numpy.tanh"]()
        return found

    def report(logits: Any) -> PortReport:
        port = CallablePort(logits, "port", None)
        return judge(
            *("port", source, INPUTS, None, "cpu", Silent()),
            build=lambda: port,
            laws=(),
            shared=shared,
        )

    with deviations_kept():
        assert refused(report(changing), "numpy.tanh")
        following = report(right.logits)
    assert following.verdict is Verdict.VERIFIED, following.findings


def test_what_is_put_back_before_the_call_ends_is_noticed() -> None:
    """While the port shows its sites the reference computes, and the call is not over."""

    def build(source: Checkpoint) -> Port:
        made = plain(source=source)
        right = made.activations
        assert right is not None

        def activations(tokens: Any, visit: Any) -> Any:
            np.tanh = lambda x: TANH(x) * 1.001
            try:
                return right(tokens, visit)
            finally:
                np.tanh = TANH

        made.activations = activations
        return made

    assert refused(judged(build), "numpy.tanh")


@contextmanager
def replaced(name: str) -> Iterator[None]:
    watch = Watch()
    CHANGES[name]()
    try:
        yield
    finally:
        assert watch.replaced()


def test_what_was_changed_before_anybody_looked_is_noticed_by_its_values() -> None:
    with replaced("numpy.tanh"):
        report = judged(lambda source: plain(source=source))
        assert refused(report, "the reference was changed before the port was built")
        assert report.error is not None and "should be" in report.error
    assert judged(lambda source: plain(source=source)).verdict is Verdict.VERIFIED


def test_a_small_change_shows_in_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_check() is None
    with monkeypatch.context() as patch:
        patch.setattr(ops, "GELU_CUBIC", ops.GELU_CUBIC * (1 + 1e-9))
        assert self_check() is not None
    with monkeypatch.context() as patch:
        patch.setattr(ops.gelu, "__defaults__", (ops.SQRT_2_OVER_PI * (1 + 1e-9),))
        assert self_check() is not None
    assert self_check() is None


def test_a_reference_that_returns_nothing_of_use_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for wrong in (np.zeros((2, 2)), np.full((5, 7), np.nan)):
        monkeypatch.setattr(stored, "logits", lambda *args, wrong=wrong: wrong)
        assert self_check() is not None


def test_the_stored_floor_is_the_measured_one() -> None:
    tensors = {name: value.astype(np.float32) for name, value in stored.weights().items()}
    weights = DeclaredWeights(tensors, FLOAT64)
    measured = measure_floor(stored.CONFIG, weights, FLOAT64, np.array(stored.TOKENS))
    assert pytest.approx(np.sqrt(np.mean(measured.rms_T**2)), rel=0.5) == stored.FLOOR


def test_what_is_added_is_nobodys_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    monkeypatch.setattr(np, "of_mine", lambda: 0, raising=False)
    assert watch.replaced() == []


def test_what_was_added_before_is_watched_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Watch().replaced() == []
    monkeypatch.setattr(ops, "of_mine", lambda: 0, raising=False)
    watch = Watch()
    monkeypatch.setattr(ops, "of_mine", lambda: 1)
    assert watch.replaced() == ["gpt_verify.reference.ops.of_mine"]


def test_long_lists_are_cut() -> None:
    assert listing(["a"] * 3) == "a, a, a"
    assert listing("abcdefg") == "a, b, c and 4 more"
    assert listing(range(9), 7) == "0, 1, 2, 3, 4, 5, 6 and 2 more"


Vector = list[float]


def _norm(x: Vector, g: Vector, b: Vector) -> Vector:
    mean = math.fsum(x) / len(x)
    variance = math.fsum((a - mean) ** 2 for a in x) / len(x)
    return [
        gi * (a - mean) / math.sqrt(variance + 1e-5) + bi for a, gi, bi in zip(x, g, b, strict=True)
    ]


def _dot(x: Vector, y: Vector) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def _linear(x: Vector, w: list[Vector], b: Vector) -> Vector:
    return [_dot(x, [row[j] for row in w]) + b[j] for j in range(len(b))]


def _gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def without_numpy() -> list[float]:
    """The whole of GPT-2 in Python's own numbers."""
    w: dict[str, Any] = {name: value.tolist() for name, value in stored.weights().items()}
    d, heads = stored.CONFIG.n_embd, stored.CONFIG.n_head
    k = d // heads
    stream = [
        [a + b for a, b in zip(w["wte"][token], w["wpe"][t], strict=True)]
        for t, token in enumerate(stored.TOKENS)
    ]
    for i in range(stored.CONFIG.n_layer):
        at = f"h{i}"
        qkv = [
            _linear(
                _norm(x, w[f"{at}/ln_1/g"], w[f"{at}/ln_1/b"]),
                w[f"{at}/attn/c_attn/w"],
                w[f"{at}/attn/c_attn/b"],
            )
            for x in stream
        ]
        for t, x in enumerate(stream):
            mixed = []
            for h in range(heads):
                of = slice(h * k, (h + 1) * k)
                query = qkv[t][:d][of]
                keys = [row[d : 2 * d][of] for row in qkv[: t + 1]]
                values = [row[2 * d :][of] for row in qkv[: t + 1]]
                asked = [_dot(query, key) / math.sqrt(k) for key in keys]
                weights = [math.exp(a - max(asked)) for a in asked]
                total = math.fsum(weights)
                mixed += [
                    math.fsum(p * v[j] for p, v in zip(weights, values, strict=True)) / total
                    for j in range(k)
                ]
            out = _linear(mixed, w[f"{at}/attn/c_proj/w"], w[f"{at}/attn/c_proj/b"])
            x = [a + b for a, b in zip(x, out, strict=True)]
            pre = _linear(
                _norm(x, w[f"{at}/ln_2/g"], w[f"{at}/ln_2/b"]),
                w[f"{at}/mlp/c_fc/w"],
                w[f"{at}/mlp/c_fc/b"],
            )
            act = [_gelu(a) for a in pre]
            out = _linear(act, w[f"{at}/mlp/c_proj/w"], w[f"{at}/mlp/c_proj/b"])
            stream[t] = [a + b for a, b in zip(x, out, strict=True)]
    final = [_norm(x, w["ln_f/g"], w["ln_f/b"]) for x in stream]
    return [_dot(x, row) for x in final for row in w["wte"]]


def test_the_stored_values_are_those_of_gpt2_without_numpy() -> None:
    limit = stored.LIMIT_FLOORS * scores.limit_max(len(stored.LOGITS)) * stored.FLOOR
    made = without_numpy()
    assert len(made) == len(stored.LOGITS)
    for got, expected in zip(made, stored.LOGITS, strict=True):
        assert abs(got - expected) <= limit
