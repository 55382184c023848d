"""The same bits twice, nothing left in training mode, and the process left as it was found."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import determinism_faults as faults
import numpy as np
import pytest
import torch
from models import INPUTS, checkpoint, finding
from plain_ports import faulty, plain
from subjects import hold, port, subject

from gpt_verify.faults.model import build
from gpt_verify.findings import Finding, PortReport, Status, Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.determinism.check import _SETS, Determinism
from gpt_verify.port import DROPOUT, Port
from gpt_verify.ports.callable import CallablePort
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.power.injection import EVERYWHERE, Injection, port_with
from gpt_verify.process.restored import restored
from gpt_verify.process.state import snapshot
from gpt_verify.reference import Config

SOURCE = checkpoint()
MODE, STATE = "determinism.mode", "determinism.state"


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """What the faults change, set back."""
    before = snapshot()
    with restored():
        yield
    after = snapshot()
    assert {name: after[name] for name in before} == before


def judged(make: Any) -> PortReport:
    """The report of a port, loaded by ``make`` and checked for these laws alone."""
    return judge("made", SOURCE, INPUTS, None, "cpu", Silent(), build=make, laws=[MODE, STATE])


def faulted(fault: str, attention: str = "eager") -> Port:
    """transformers' GPT-2 with a fault of the tests, or a plain port with one of the catalogue."""
    return faulty(fault) if fault in CATALOGUE else port(getattr(faults, fault), attention)


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
        "loading it and its calls of logits, forward, activations, step, padded, padded_at, loss, "
        "gradients leave "
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
    made = CallablePort(port().logits, "callable", None)
    assert only(hold(MODE, made), MODE) == Finding(MODE, Status.NOT_EXAMINED, "no training mode")
    found = only(hold(STATE, made), STATE)
    assert found.status is Status.PASSED
    assert found.message.startswith("its calls of logits leave ")


# The same bits


def kept(first: Any, later: Any) -> Any:
    """Logits alone, changed in the first call of each input, and in later ones."""
    right, seen = plain(), set()

    def logits(tokens: Any) -> Any:
        known, made = tokens.tobytes() in seen, right.logits(tokens)
        seen.add(tokens.tobytes())
        return np.asarray((later if known else first)(made), made.dtype)

    return lambda: CallablePort(logits, "kept", None)


def one_unit(x: Any) -> Any:
    return np.nextafter(x, x + 1)


def test_whoever_keeps_something_may_round_otherwise_from_the_second_call_on() -> None:
    report = judged(kept(one_unit, lambda x: x))
    assert report.verdict is Verdict.VERIFIED
    message = finding(report, "determinism").message
    assert message.startswith("3 inputs run twice, same bits but for 3, whose first call is within")


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (lambda x: x * (1 + 1e-3), lambda x: x),
        (lambda x: x, lambda x: x + 1e-3),
        (lambda x: x[..., :1] * 1.0, lambda x: x),
    ],
    ids=["first", "later", "shape"],
)
def test_but_not_by_more_than_rounding(first: Any, later: Any) -> None:
    assert judged(kept(first, later)).verdict is not Verdict.VERIFIED
    made = kept(first, later)()
    tokens = INPUTS[2].tokens
    one, other = made.logits(tokens), made.logits(tokens)
    twice = Determinism(subject(plain()))
    assert not twice.add("length 19", tokens, one, other, lambda: made.logits(tokens))
    (found,) = twice.findings(made, tokens)
    assert found.status is Status.FAILED


def test_another_dtype_is_refuted() -> None:
    made, tokens = plain(), INPUTS[2].tokens
    exact = made.logits(tokens)
    twice = Determinism(subject(made))
    assert not twice.add("length 19", tokens, exact, exact.astype(np.float64), lambda: exact)
    (found,) = twice.findings(made, tokens)
    assert found.status is Status.FAILED
    assert found.message.startswith("length 19: dtype float32, then float64; ")


def test_and_not_at_every_call() -> None:
    rng, right = np.random.default_rng(0), plain()
    tokens = INPUTS[2].tokens
    exact = right.logits(tokens)

    def some_units() -> Any:
        return np.where(rng.random(exact.shape) < 0.5, exact, one_unit(exact))

    twice = Determinism(subject(right))
    assert not twice.add("length 19", tokens, some_units(), some_units(), some_units)
    (found,) = twice.findings(right, tokens)
    assert found.status is Status.FAILED


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("noise_of_a_generator_of_its_own", "no random state of the process moves"),
        ("state_kept_between_calls", "something is kept from call to call"),
        ("one_unit_every_other_call", "no random state of the process moves"),
        ("dropout_on_whatever_the_mode", "draws from torch's random state: dropout"),
        ("determinism-foreign-draws", "draws from NumPy's random state: dropout"),
    ],
)
def test_other_bits_are_refuted(fault: str, says: str) -> None:
    report = judged(lambda: faulted(fault))
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
            "determinism-foreign-draws",
            "although nothing is in training mode; a call draws from NumPy's random state: dropout",
        ),
    ],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training_mode_is_refuted(fault: str, says: str, attention: str) -> None:
    found = only(hold(MODE, faulted(fault, attention)), MODE)
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
            "determinism-default-dtype",
            "running it changes torch's default dtype (torch.float32 → torch.float64)",
        ),
        ("determinism-seeds", "logits() changes torch's random state"),
        ("determinism-draws", "logits() changes Python's random state"),
        ("determinism-threads", "running it changes torch's threads ("),
        ("determinism-float32-products", "torch's float32 matmul precision (highest → high)"),
        ("determinism-numpy-errors", "running it changes NumPy's error handling ("),
        ("dropout_on_whatever_the_mode", "logits() changes torch's random state"),
        ("determinism-foreign-draws", "logits() changes NumPy's random state"),
    ],
)
def test_what_calls_change_is_refuted(fault: str, says: str) -> None:
    found = finding(judged(lambda: faulted(fault)), STATE)
    assert found.status is Status.FAILED
    assert says in found.message


def test_the_call_that_changes_something_is_named() -> None:
    found = only(hold(STATE, port(faults.asks_for_deterministic_algorithms)), STATE)
    assert found.status is Status.FAILED
    assert found.message == "loss() changes torch's deterministic algorithms (False → True)"


def test_derivatives_that_every_call_turns_off_are_missed() -> None:
    """Whoever asks for logits turns them off as well, and on again."""
    with restored():
        found = only(hold(STATE, port(faults.turns_derivatives_off)), STATE)
    assert found.status is Status.FAILED
    assert found.message.startswith("forward() changes torch's grad mode (True → False)")
    assert found.fault == "determinism-grad-mode"


def test_one_that_changes_back_what_loading_changed_is_named_once() -> None:
    """What is changed at first and not again is not blamed on a later call."""

    def sets() -> Port:
        torch.set_default_dtype(torch.float64)
        return port()

    found = finding(judged(sets), STATE)
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


# The fault by its name


#: Fault → its name in the catalogue, or nothing where another one would look the same.
NAMED = {
    "noise_of_a_generator_of_its_own": "determinism-own-state",
    "state_kept_between_calls": "determinism-own-state",
    "one_unit_every_other_call": "determinism-own-state",
    "left_in_training_mode": "determinism-training-mode",
    "one_dropout_left_on": "determinism-training-mode",
    "attention_left_in_training_mode": "determinism-training-mode",
    "dropout_on_whatever_the_mode": None,
    "attention_dropout_on_whatever_the_mode": None,
    "asks_for_deterministic_algorithms": "determinism-algorithms",
    **{name: name for name, fault in CATALOGUE.items() if fault.family == "determinism"},
}


@pytest.mark.parametrize("fault", NAMED)
def test_its_law_names_it_and_no_law_names_another(fault: str) -> None:
    report = judged(lambda: loaded(fault))
    laws = [f for f in report.findings if f.id.startswith("determinism")]
    names = {f.fault for f in laws if f.status is Status.FAILED and f.fault}
    assert names == ({NAMED[fault]} - {None})
    if fault in CATALOGUE:
        assert report.explained_by == (fault,)
        (own,) = [f for f in laws if f.id == CATALOGUE[fault].law]
        assert own.fault == fault


def loaded(fault: str) -> Port:
    """As ``faulted``; what a port of the catalogue changes when it is built, it changes now."""
    if fault not in CATALOGUE:
        return port(getattr(faults, fault))
    return port_with(CATALOGUE[fault], Injection(fault, EVERYWHERE, (0, 1, 2)), SOURCE)


def test_every_fault_of_the_catalogue_is_named_by_the_law_that_it_says() -> None:
    family = {name: fault for name, fault in CATALOGUE.items() if fault.family == "determinism"}
    assert {fault.law for fault in family.values()} == {"determinism", MODE, STATE}
    assert set(_SETS.values()) == {
        name
        for name, fault in family.items()
        if fault.law == STATE and name not in ("determinism-seeds", "determinism-draws")
    }


def _at_every_call(model: Any, *acts: Callable[[], object]) -> None:
    def all_of_them(*_: object) -> None:
        for act in acts:
            act()

    model.register_forward_pre_hook(all_of_them)


def two_settings(model: Any) -> None:
    _at_every_call(
        model, lambda: np.seterr(all="ignore"), lambda: torch.set_default_dtype(torch.float64)
    )


def draws_and_seeds(model: Any) -> None:
    """Two generators, and two different things done to them."""
    _at_every_call(model, random.random, lambda: torch.manual_seed(0))


def draws_in_its_loss(model: Any) -> None:
    """Which may be of use there."""
    loss = model.loss_function
    model.loss_function = lambda *args, **kwargs: (random.random(), loss(*args, **kwargs))[1]


def two_generators(model: Any) -> None:
    """Torch's dropout, and noise of NumPy's."""
    faults.dropout_on_whatever_the_mode(model)
    model.transformer.drop.register_forward_hook(
        lambda module, args, x: x + 1e-6 * float(np.random.standard_normal())
    )


def collects_no_garbage(model: Any) -> None:
    _at_every_call(model, gc.disable)


@pytest.mark.parametrize(
    "alter", [two_settings, draws_and_seeds, draws_in_its_loss, two_generators, collects_no_garbage]
)
def test_what_may_be_something_else_is_not_named(alter: Callable[[Any], None]) -> None:
    report = judged(lambda: port(alter))
    failed = [f for f in report.findings if f.status is Status.FAILED]
    assert {f.id for f in failed} & {"determinism", MODE, STATE}
    assert not any(f.fault for f in failed if f.id.startswith("determinism"))


def test_what_has_no_mode_is_not_said_to_be_left_in_one() -> None:
    """As a graph, of which it is only known that an operation draws."""
    made = port(faults.one_dropout_left_on)
    made.withdraw(DROPOUT)
    found = only(hold(MODE, made), MODE)
    assert found.message.startswith("left on from training: transformer.h.1.mlp.dropout; ")
    assert found.fault is None


def test_what_cannot_be_looked_into_is_not_named() -> None:
    """Other bits of a function, which may compute in another process."""
    noisy = port(faults.noise_of_a_generator_of_its_own)
    report = judged(lambda: CallablePort(noisy.logits, "callable", None))
    found = finding(report, "determinism")
    assert found.status is Status.FAILED
    assert found.fault is None
