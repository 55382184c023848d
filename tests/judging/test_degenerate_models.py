"""Models of which some size or some weights say next to nothing are models all the same: a correct
port of one is verified, and a wrong one refuted where the difference can show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_ports import _correct
from command import Run, complaint
from hypothesis import given, settings
from hypothesis import strategies as st
from models import checkpoint, failed_laws, failures, finding, judged
from safetensors.torch import load_file, save_file
from torch_styles import fused_in_place

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import PortReport, Verdict
from gpt_verify.graph.cascade import LIMIT_FLOORS, Lockstep
from gpt_verify.graph.floor import measure_floor
from gpt_verify.inputs import default_inputs
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Dtype, Port
from gpt_verify.ports.callable import CallablePort
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.power.trial import Bench
from gpt_verify.reference import Config

SIZES = Config(n_vocab=11, n_ctx=7, n_embd=8, n_head=2, n_layer=2)
Change = Callable[[str, np.ndarray], np.ndarray]


def altered(change: Change, config: Config = SIZES) -> Checkpoint:
    source = checkpoint(config)
    tensors = {
        name: np.asarray(change(name, np.array(value)), np.float32)
        for name, value in source.tensors.items()
    }
    return replace(source, tensors=tensors)


def only(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda name, value: change(value) if part in name else value


WEIGHTS: dict[str, Change] = {
    "as they are": lambda name, value: value,
    "zeros": lambda name, value: 0 * value,
    "constant": lambda name, value: 0 * value + 0.5,
    "ones": lambda name, value: 0 * value + 1,
    "equal rows of wte": only("wte", lambda x: x[:1] + 0 * x),
    "two rows of wte are equal": only("wte", lambda x: np.concatenate([x[:1], x[:-1]])),
    "no wte": only("wte", lambda x: 0 * x),
    "no wpe": only("wpe", lambda x: 0 * x),
    "no gains": only("/g", lambda x: 0 * x),
    "no ln_f": only("ln_f", lambda x: 0 * x),
    "no projections": only("c_proj", lambda x: 0 * x),
}
CONFIGS = {
    "one token": replace(SIZES, n_vocab=1),
    "two tokens": replace(SIZES, n_vocab=2),
    "one position": replace(SIZES, n_ctx=1),
    "two positions": replace(SIZES, n_ctx=2),
    "width 1": Config(n_vocab=11, n_ctx=7, n_embd=1, n_head=1, n_layer=2),
    "width 2": Config(n_vocab=11, n_ctx=7, n_embd=2, n_head=1, n_layer=2),
    "everything 1": Config(n_vocab=1, n_ctx=1, n_embd=1, n_head=1, n_layer=1),
}
SOURCES = {f"weights: {name}": altered(change) for name, change in WEIGHTS.items()}
SOURCES |= {name: checkpoint(config) for name, config in CONFIGS.items()}


def function(source: Checkpoint, change: Callable[[Any], Any] = lambda x: x) -> Port:
    return CallablePort(lambda tokens: change(_correct(source, tokens)), "function", None)


def module(source: Checkpoint, dtype: Dtype | None = None) -> Port:
    return TorchModule(fused_in_place(source), source, "module", dtype)


def report_of(source: Checkpoint, port: Port) -> PortReport:
    inputs = default_inputs(source.config, 0)
    return judge("port", source, inputs, port.dtype, "cpu", Silent(), build=lambda: port)


def is_verified(report: PortReport) -> None:
    assert report.error is None
    assert failures(report) == []
    assert report.verdict is Verdict.VERIFIED


@pytest.mark.parametrize("name", SOURCES)
def test_right_function(name: str) -> None:
    is_verified(report_of(SOURCES[name], function(SOURCES[name])))


@pytest.mark.parametrize("name", SOURCES)
def test_right_module(name: str) -> None:
    is_verified(report_of(SOURCES[name], module(SOURCES[name])))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["width 1", "width 2", "everything 1", "weights: zeros", "weights: equal rows of wte"]
)
def test_right_module_in_half_precision(name: str, dtype: Dtype) -> None:
    is_verified(report_of(SOURCES[name], module(SOURCES[name], dtype)))


@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (4, 4, 4, 2)]),
    kind=st.sampled_from(sorted(WEIGHTS)),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    shown=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_right_at_any_size(
    sizes: tuple[int, int, int, int], kind: str, scale: float, shown: bool
) -> None:
    config = Config(*sizes[:3], n_head=1, n_layer=sizes[3])
    source = altered(lambda name, value: WEIGHTS[kind](name, scale * value), config)
    is_verified(report_of(source, module(source) if shown else function(source)))


def all_moved(logits: np.ndarray, by: float) -> np.ndarray:
    return logits + np.float32(8 * by)


def first_moved(logits: np.ndarray, by: float) -> np.ndarray:
    logits[..., 0] += by * (np.abs(logits[..., 0]) + 1)
    return logits


def noise(source: Checkpoint) -> float:
    """The largest noise floor of a correct port's logits, on any of the inputs.

    The norm of a vector whose channels are all alike divides what its rounding makes unlike by the
    root of epsilon. With constant weights that is all that the last norm sees: where all are 1, the
    logits are 8 with a floor of 0.17, and a hundredth more cannot be told from rounding.
    """
    weights = DeclaredWeights(source.tensors, FLOAT32)
    rows = [row for item in default_inputs(source.config, 0) for row in item.tokens]
    floors = [measure_floor(source.config, weights, FLOAT32, row).rms_T.max() for row in rows]
    return float(max(floors))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("change", [all_moved, first_moved])
def test_wrong_function(name: str, change: Callable[[Any, float], Any]) -> None:
    """What is added to all logits of a position may be a centred head where they differ; where they
    do not, it is all that they say. It shows where it is twice what the limit leaves to rounding,
    of one logit among all."""
    source = SOURCES[name]
    by = max(1e-2, 2 * LIMIT_FLOORS * source.config.n_vocab**0.5 * noise(source))
    report = report_of(source, function(source, lambda x: change(x, by)))
    right = _correct(source, np.zeros((1, 1), np.int64))
    if change is first_moved or np.ptp(right) == 0.0:
        assert report.verdict is Verdict.REFUTED
        assert "logits" in failed_laws(report)
    else:
        assert report.verdict is Verdict.VERIFIED
        assert "equal up to a constant" in finding(report, "logits", "logits").message


def test_wrong_module() -> None:
    """Its weights show, whatever its logits say."""
    source = SOURCES["weights: equal rows of wte"]
    made = fused_in_place(source)
    with torch.no_grad():
        made.blocks[1].fc_in.weight[0, 0] += 0.5
    report = report_of(source, TorchModule(made, source, "module"))
    assert report.verdict is Verdict.REFUTED


class TestNotFinite:
    """Weights that are no numbers are no finding about a port."""

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_refused(self, run: Run, tiny: Path, tmp_path: Path, value: float) -> None:
        other = Path(shutil.copytree(tiny, tmp_path / "other"))
        path = other / "model.safetensors"
        tensors = load_file(path)
        (key,) = [k for k in tensors if k.endswith("h.1.mlp.c_fc.bias")]
        tensors[key][3] = value
        save_file(tensors, path, metadata={"format": "pt"})
        status, out, err = run("--checkpoint", other, "--port", "huggingface-sdpa")
        assert status == 2
        line = complaint(err)
        assert f"model.safetensors: h1/mlp/c_fc/b[3] = {value}: 1 of its" in line
        assert "verified:" not in out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_norm_over_one_channel_divides_what_is_left_by_next_to_nothing(
    dtype: Dtype, seed: int
) -> None:
    """What rounding does there, the reference's own norm does not show: its mean is exact."""
    config = Config(n_vocab=67, n_ctx=19, n_embd=1, n_head=1, n_layer=2)
    source, inputs = checkpoint(config, seed), default_inputs(config, seed)
    report = judged("huggingface-eager", source, inputs, dtype)
    assert failures(report) == []
    assert report.verdict is Verdict.VERIFIED


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_looked_at_in_models_alone_that_have_such_a_norm(
    dtype: Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In others the noise of the whole run is more than the last norm's own."""
    seen: list[bool] = []
    right = Lockstep._as_noisy_as_the_norm

    def watched(self: Lockstep, exact: Any, noisy: Any, first: int) -> Any:
        made = right(self, exact, noisy, first)
        seen.append(made is not noisy)
        return made

    monkeypatch.setattr(Lockstep, "_as_noisy_as_the_norm", watched)
    judged("huggingface-eager", dtype=dtype)
    assert seen and not any(seen)
    config = CONFIGS["width 1"]
    judged("huggingface-eager", checkpoint(config), default_inputs(config, 0), dtype)
    assert any(seen)


@pytest.mark.parametrize("variant", ["one-hot lookup", "v, k, q", "k and v in one matrix"])
@pytest.mark.parametrize(
    "config", [Config(24, 24, 24, 1, 2), Config(67, 19, 1, 1, 2), Config(2, 5, 8, 2, 1)], ids=str
)
def test_sizes_that_make_two_things_look_alike(config: Config, variant: str) -> None:
    """A table as wide as it is long; a matrix of one row, and a bias; a bias as large as wte."""
    outcome = Bench(checkpoint(config, 5), 5, every_law=False).correct(variant, 5, set())
    assert (outcome.verdict, outcome.failures) == ("verified", ())
