"""The same bits twice, nothing left in training mode, and the process left as it was found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import determinism_faults as faults
import numpy as np
import pytest
import torch
from models import INPUTS, checkpoint, finding
from plain_ports import plain
from subjects import hold, port

from reference import Config
from verify.faults.model import build
from verify.findings import Finding, PortReport, Status, Verdict
from verify.judge import judge
from verify.ports.port import Port
from verify.ports.torch_module import TorchModule
from verify.process_state import snapshot
from verify.run import Silent

SOURCE = checkpoint()
MODE, STATE = "determinism.mode", "determinism.state"


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """What the faults change, set back; whatever else a test changes is an error."""
    before = snapshot()
    kept = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    threads, errors = torch.get_num_threads(), np.geterr()
    yield
    torch.set_rng_state(kept[0])
    np.random.set_state(kept[1])
    random.setstate(kept[2])
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    np.seterr(**errors)
    after = snapshot()
    assert {name: after[name] for name in before} == before


def judged(make: Any) -> PortReport:
    """The report of a port, loaded by ``make`` and held against these laws alone."""
    return judge("made", SOURCE, INPUTS, None, "cpu", Silent(), build=make, laws=[MODE, STATE])


def only(found: list[Finding], law: str) -> Finding:
    (one,) = found
    assert one.id == law
    return one


# Correct ports


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_correct_port(attention: str, dtype: Any) -> None:
    report = judged(lambda: port(attention=attention, dtype=dtype))
    assert report.verdict is Verdict.VERIFIED
    twice, mode, state = (finding(report, law) for law in ("determinism", MODE, STATE))
    assert twice.message == "3 inputs run twice, same bits"
    assert mode.message == (
        "nothing is in training mode; 10 dropouts are off; two calls on 19 tokens, same bits"
    )
    assert state.message.startswith(
        "loading it and its calls of logits, activations, step, padded, padded_at, loss, gradients "
        "leave "
    )
    assert {twice.status, mode.status, state.status} == {Status.PASSED}


@pytest.mark.parametrize("config", [Config(1, 1, 2, 1, 1), Config(2, 2, 1, 1, 1)])
def test_odd_sizes(config: Config) -> None:
    source = checkpoint(config)
    for law in (MODE, STATE):
        for made in (port(source=source), plain(source=source)):
            assert only(hold(law, made, source), law).status is Status.PASSED


def test_training_mode_without_dropout_is_no_fault_and_is_said() -> None:
    """A module that does not obey ``eval()``, and has nothing that would act."""
    found = only(hold(MODE, plain(lambda model: model.train())), MODE)
    assert found.status is Status.PASSED
    assert "in training mode without any dropout" in found.message


def test_only_logits() -> None:
    from verify.ports.callable import CallablePort

    made = CallablePort(port().logits, "callable", None)
    assert only(hold(MODE, made), MODE) == Finding(MODE, Status.NOT_EXAMINED, "no training mode")
    found = only(hold(STATE, made), STATE)
    assert found.status is Status.PASSED
    assert found.message.startswith("its calls of logits leave ")


# The same bits


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("noise_of_a_generator_of_its_own", "no random state of the process moves"),
        ("state_kept_between_calls", "something is kept from call to call"),
        ("one_unit_every_other_call", "no random state of the process moves"),
        ("dropout_on_whatever_the_mode", "draws from torch's random state: dropout"),
        ("mask_drawn_by_numpy", "draws from NumPy's random state: dropout"),
    ],
)
def test_other_bits_are_refuted(fault: str, says: str) -> None:
    report = judged(lambda: port(getattr(faults, fault)))
    found = finding(report, "determinism")
    assert found.status is Status.FAILED
    assert "logits differ between two calls; " in found.message
    assert says in found.message


# Training mode


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            "left_in_training_mode",
            "transformer.drop, transformer.h.0.attn.attn_dropout, "
            "transformer.h.0.attn.resid_dropout, transformer.h.0.mlp.dropout and 6 more are in "
            "training mode, dropout p = 0.1 would act; ",
        ),
        (
            "one_dropout_left_on",
            "transformer.h.1.mlp.dropout is in training mode, dropout p = 0.1 would act; ",
        ),
        (
            "attention_left_in_training_mode",
            "transformer.h.2.attn is in training mode, dropout p = 0.1 would act; ",
        ),
        (
            "dropout_on_whatever_the_mode",
            "although nothing is in training mode; drawn at random, whatever the mode: "
            "transformer.h.1.mlp (bernoulli_)",
        ),
        (
            "attention_dropout_on_whatever_the_mode",
            "although nothing is in training mode; drawn at random, whatever the mode: "
            "transformer.h.0.attn (bernoulli_)",
        ),
        (
            "mask_drawn_by_numpy",
            "although nothing is in training mode; a call draws from NumPy's random state: dropout",
        ),
    ],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training_mode_is_refuted(fault: str, says: str, attention: str) -> None:
    found = only(hold(MODE, port(getattr(faults, fault), attention)), MODE)
    assert found.status is Status.FAILED
    assert says in found.message


@pytest.mark.parametrize(
    "fault",
    [
        "noise_of_a_generator_of_its_own",
        "state_kept_between_calls",
        "one_unit_every_other_call",
    ],
)
def test_other_bits_that_nothing_draws_are_not_blamed_on_a_mode(fault: str) -> None:
    found = only(hold(MODE, port(getattr(faults, fault))), MODE)
    says = "two calls differ, and nothing is seen to draw random numbers"
    assert (found.status, found.message) == (Status.NOT_EXAMINED, says)


def test_training_mode_that_happens_to_change_nothing_is_refuted() -> None:
    """A dropout in training mode that this path does not use."""

    def unused(model: Any) -> None:
        model.transformer.h[0].spare = torch.nn.Dropout(0.25)

    found = only(hold(MODE, port(unused)), MODE)
    assert found.status is Status.FAILED
    assert found.message == (
        "transformer.h.0.spare is in training mode, dropout p = 0.25 would act; "
        "the bits of two calls are the same even so"
    )


class _NeverEvaluates(torch.nn.Module):
    """Does not pass ``eval()`` on, and drops by a number and its mode (as nanoGPT's attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build(SOURCE)
        self.dropout = 0.2

    def train(self, mode: bool = True) -> _NeverEvaluates:
        return self

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(ids)["logits"]
        return torch.nn.functional.dropout(logits, self.dropout, self.training)


def test_a_module_that_refuses_eval() -> None:
    found = only(hold(MODE, TorchModule(_NeverEvaluates(), SOURCE, "stubborn")), MODE)
    assert found.status is Status.FAILED
    assert found.message.startswith("the model is in training mode, dropout p = 0.2 would act; ")


# The process


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            "sets_the_default_dtype",
            "running it changes torch's default dtype (torch.float32 → torch.float64)",
        ),
        ("seeds_torch", "logits() changes torch's random state"),
        ("draws_and_drops_it", "logits() changes Python's random state"),
        ("sets_the_threads", "running it changes torch's threads ("),
        ("allows_tf32", "torch's float32 matmul precision (highest → high)"),
        ("silences_numpy", "running it changes NumPy's error handling ("),
        ("dropout_on_whatever_the_mode", "logits() changes torch's random state"),
        ("mask_drawn_by_numpy", "logits() changes NumPy's random state"),
    ],
)
def test_what_calls_change_is_refuted(fault: str, says: str) -> None:
    found = finding(judged(lambda: port(getattr(faults, fault))), STATE)
    assert found.status is Status.FAILED
    assert says in found.message


def test_the_call_that_changes_something_is_named() -> None:
    found = only(hold(STATE, port(faults.asks_for_deterministic_algorithms)), STATE)
    assert found.status is Status.FAILED
    assert found.message == "loss() changes torch's deterministic algorithms (False → True)"


def test_one_that_changes_back_what_loading_changed_is_named_once() -> None:
    """What is changed at first and not again is not blamed on a later call."""

    def made() -> Port:
        torch.set_default_dtype(torch.float64)
        return port()

    found = finding(judged(made), STATE)
    assert found.status is Status.FAILED
    assert found.message == (
        "loading it changes torch's default dtype (torch.float32 → torch.float64)"
    )


def test_loading_may_draw_first_weights_and_nothing_else() -> None:
    def draws() -> Port:
        torch.nn.Linear(3, 3)
        return port()

    def grad_off() -> Port:
        torch.set_grad_enabled(False)
        return port()

    assert finding(judged(draws), STATE).status is Status.PASSED
    found = finding(judged(grad_off), STATE)
    assert found.status is Status.FAILED
    assert "loading it changes torch's grad mode (True → False)" in found.message


def test_the_laws_leave_everything_as_it_was() -> None:
    made = port(faults.one_dropout_left_on)
    hooks = [len(part._forward_hooks) for part in made.module.modules()]
    hold(MODE, made)
    hold(STATE, made)
    assert made.training() == ["transformer.h.1.mlp.dropout"]
    assert [len(part._forward_hooks) for part in made.module.modules()] == hooks
