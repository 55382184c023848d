"""On a GPU, and the same on the CPU: what is said of one device is tested on both.

Where there is no GPU, the tests that are marked so are skipped, with that reason.
"""

from __future__ import annotations

from typing import Any

import determinism_faults as faults
import numpy as np
import pytest
import torch
from gpu_ports import tf32
from models import CONFIG, INPUTS, checkpoint, finding
from subjects import hold, port

from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.port import Port

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SOURCE = checkpoint()

on_each = pytest.mark.parametrize("device", DEVICES)


def judged(make: Any, device: str) -> PortReport:
    return judge("made", SOURCE, INPUTS, None, device, Silent(), build=make)


@on_each
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_correct_port_is_verified(device: str, attention: str, dtype: Any) -> None:
    report = judged(lambda: port(attention=attention, dtype=dtype, device=device), device)
    assert (report.verdict, report.error, report.device) == (Verdict.VERIFIED, None, device)
    met = finding(report, "device")
    assert met.status is (Status.PASSED if device == "cuda" else Status.NOT_EXAMINED), met.message


@on_each
def test_dropout_is_seen(device: str) -> None:
    for fault in (faults.left_in_training_mode, faults.dropout_on_whatever_the_mode):
        (found,) = hold("determinism.mode", port(fault, device=device))
        assert found.status is Status.FAILED, found.message
    made = port(faults.dropout_on_whatever_the_mode, device=device)
    draws = made.draws
    assert draws is not None
    assert draws(INPUTS[1].tokens)[0].startswith("transformer.h.1.mlp (")
    (found,) = hold("determinism.state", made)
    assert found.status is Status.FAILED
    moved = "torch's CUDA random state" if device == "cuda" else "torch's random state"
    assert moved in found.message


@on_each
def test_autocast_is_recognised(device: str) -> None:
    def autocast(model: Any) -> None:
        right = model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(device, dtype=torch.bfloat16):
                return right(*args, **kwargs)

        model.forward = forward

    (found,) = hold("precision", port(autocast, device=device))
    assert found.status is Status.FAILED
    assert "declared float32, computes in bfloat16 at all" in found.message


def _elsewhere(made: Port, device: str) -> tuple[Any, Any]:
    """Logits here, and there, and here again the same bits."""
    tokens = INPUTS[2].tokens
    before = made.logits(tokens)
    with made.elsewhere(device) as other:
        assert other.device == device
        there = other.logits(tokens)
    assert np.array_equal(made.logits(tokens), before)
    return before, there


@pytest.mark.gpu
def test_there_and_back() -> None:
    here = _elsewhere(port(), "cuda")
    there = _elsewhere(port(device="cuda"), "cpu")
    assert np.array_equal(here[0], there[1])
    assert np.array_equal(here[1], there[0])


@pytest.mark.gpu
def test_tf32_is_refuted_and_the_setting_is_named() -> None:
    try:
        report = judged(lambda: tf32(SOURCE), "cuda")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert report.verdict is Verdict.REFUTED
    found = finding(report, "precision")
    assert found.status is Status.FAILED
    assert "computes in tf32" in found.message
    assert "allow_tf32 = False" in found.message
    state = finding(report, "determinism.state")
    assert state.status is Status.FAILED
    assert "loading it changes TF32 in CUDA matmuls (False → True)" in state.message


@pytest.mark.gpu
def test_a_gpu_that_rounds_to_half_precision_does_not_meet_the_cpu() -> None:
    def half(model: Any) -> None:
        fc = model.transformer.h[1].mlp.c_fc
        fc.register_forward_hook(lambda m, a, out: out.bfloat16().float() if out.is_cuda else out)

    (found,) = hold("device", port(half, device="cuda"))
    assert found.status is Status.FAILED
    assert found.message.startswith("logits on cuda and on cpu differ by ")


@on_each
def test_the_longest_sequence_with_every_position(device: str) -> None:
    """Kernels are chosen by length: the boundaries, on this device, against the float64 oracle."""
    report = judge(
        "made",
        SOURCE,
        [INPUTS[0], INPUTS[-1]],
        None,
        device,
        Silent(),
        build=lambda: port(attention="sdpa", device=device),
        laws=["causality.bits", "positions.limit"],
    )
    assert INPUTS[-1].tokens.shape[1] == CONFIG.n_ctx
    for law in ("causality.bits", "positions.limit"):
        assert finding(report, law).status is Status.PASSED
