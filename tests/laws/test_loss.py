"""The laws of the loss: correct ones in every precision, and each usual mistake by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altered_ports
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from rounding import nats_apart
from subjects import hold, message, port
from torch.nn import functional as F

from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.loss.faults import inject_loss, nats
from gpt_verify.laws.loss.faults import right as right_loss
from gpt_verify.laws.loss.hypotheses import MISTAKES
from gpt_verify.laws.table import CHECKS
from gpt_verify.numerics.loss import losses, mean_budget
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32, PRECISIONS
from gpt_verify.numerics.scores import limit_max
from gpt_verify.port import LOSS, MASKED_LOSS, PADDED, Port
from gpt_verify.reference import Config, logits
from gpt_verify.reference.loss import loss_nats

PARTS = [law.id for law in CHECKS if law.id.startswith("loss.")]
OWN = ["loss.value", "loss.ignored", "loss.labels", "loss.batch"]


def status(findings: list[Finding]) -> Status:
    (finding,) = findings
    return finding.status


# Correct losses


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("law", PARTS)
def test_the_loss_of_transformers_is_right(law: str, attention: str, dtype: Any) -> None:
    (finding,) = hold(law, port(attention=attention, dtype=dtype))
    assert finding.status is Status.PASSED, finding.message
    assert finding.score is not None and finding.limit is not None
    assert finding.score <= finding.limit


@pytest.mark.parametrize("law", PARTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "config",
    [
        Config(n_vocab=1, n_ctx=5, n_embd=4, n_head=1, n_layer=1),
        Config(n_vocab=2, n_ctx=2, n_embd=6, n_head=1, n_layer=1),
        Config(n_vocab=11, n_ctx=3, n_embd=6, n_head=3, n_layer=2),
        Config(n_vocab=301, n_ctx=70, n_embd=8, n_head=2, n_layer=1),
    ],
    ids=str,
)
def test_odd_sizes(law: str, dtype: Any, config: Config) -> None:
    source = checkpoint(config)
    (finding,) = hold(law, port(dtype=dtype, source=source), source)
    assert finding.status is Status.PASSED, finding.message


@pytest.mark.parametrize("law", PARTS)
def test_a_context_of_one_predicts_nothing(law: str) -> None:
    source = checkpoint(Config(n_vocab=5, n_ctx=1, n_embd=4, n_head=1, n_layer=1))
    (finding,) = hold(law, port(source=source), source)
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "one position: nothing is predicted"


@pytest.mark.parametrize("law", PARTS)
def test_a_port_without_a_loss_is_not_examined(law: str) -> None:
    bare = port()
    bare.withdraw(LOSS)
    (finding,) = hold(law, bare)
    assert (finding.status, finding.message) == (Status.NOT_EXAMINED, "no loss")


def in_the_models_own_format(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def gathered(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """By logsumexp and a gather, in the format of the logits."""
    x, y = x[:, :-1], y[:, 1:]
    each = x.logsumexp(-1) - x.gather(-1, y.clamp(min=0)[..., None])[..., 0]
    return each[y != -100].mean()


def step_by_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Every operation stored in the format of the logits."""
    x, y = x[:, :-1], y[:, 1:]
    shifted = x - x.max(-1, keepdim=True).values
    log_p = shifted - shifted.exp().sum(-1, keepdim=True).log()
    each = -log_p.gather(-1, y.clamp(min=0)[..., None])[..., 0]
    return (each * (y != -100)).sum() / (y != -100).sum()


def in_chunks(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Never more than three positions of logits in float32 at a time."""
    pairs = zip(x[:, :-1].split(3, 1), y[:, 1:].split(3, 1), strict=True)
    parts = [nats(a.float(), b, reduction="sum") for a, b in pairs]
    return sum(parts, torch.zeros(())) / (y[:, 1:] != -100).sum()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loss", [in_the_models_own_format, gathered, step_by_step, in_chunks])
def test_other_ways_of_computing_it_are_as_right(loss: Callable[..., Any], dtype: Any) -> None:
    def alter(model: Any) -> None:
        model.loss_function = lambda logits, labels, **more: loss(logits, labels)

    altered = port(alter, dtype=dtype)
    for law in PARTS:
        (finding,) = hold(law, altered)
        assert finding.status is Status.PASSED, finding.message


class TwoPasses(Port):
    """The loss in a pass of its own: another attention, whose rounding is another."""

    name = "two passes"

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self._eager, self._fused = (port(attention=a, dtype=dtype) for a in ("eager", "sdpa"))
        self.logits = self._eager.logits  # type: ignore[method-assign]
        self.loss, self.masked_loss, self.padded = (
            self._fused.offers()[how] for how in (LOSS, MASKED_LOSS, PADDED)
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("law", PARTS)
def test_the_loss_may_be_computed_in_a_pass_of_its_own(law: str, dtype: Any) -> None:
    (finding,) = hold(law, TwoPasses(dtype))
    assert finding.status is Status.PASSED, finding.message


# Mistakes

#: Fault → the laws that refute it by name, and the words.
NAMED: dict[str, tuple[list[str], str]] = {
    "loss-sum": (["loss.value", "loss.batch"], "the sum over the predicted tokens"),
    "loss-sum-over-rows": (["loss.value", "loss.batch"], "averaged over the batch only"),
    "loss-not-shifted": (OWN, "not shifted"),
    "loss-shifted-twice": (OWN, "shifted by two"),
    "loss-shifted-backwards": (OWN, "shifted backwards"),
    "loss-last-token-dropped": (["loss.value"], "the last token is left out"),
    "loss-first-token-dropped": (["loss.value"], "the first prediction is left out"),
    "loss-label-smoothing": (OWN, "labels are smoothed, ε = 0.02"),
    "loss-bits": (OWN, "in bits (log2)"),
    "loss-perplexity": (OWN, "the perplexity"),
    "loss-sign": (OWN, "not its negative"),
    "loss-scaled": (OWN, "every loss is 0.9 times"),
    "loss-clipped": (["loss.value"], "the loss of each token is cut at 4 nats"),
    "loss-mean-of-means": (["loss.batch"], "the mean of each row's mean"),
    "loss-ignored-in-divisor": (["loss.ignored", "loss.batch"], "counted in the divisor"),
    "loss-positions-in-divisor": (OWN, "divided by all positions"),
    "loss-ignored-as-token-0": (["loss.ignored", "loss.batch"], "taken for token 0"),
    "loss-ignored-from-the-end": (["loss.ignored", "loss.batch"], "hundredth token from the end"),
    "loss-padding-counted": (["loss.ignored", "loss.batch"], "as padding is, are counted"),
    "loss-mask-not-shifted": (["loss.ignored", "loss.batch"], "mask of ignored labels is not"),
}


def test_every_fault_of_the_catalogue_is_here() -> None:
    family = {name: fault for name, fault in CATALOGUE.items() if fault.family == "loss"}
    of_others = {"loss.labels", "loss.masked"}  # below
    assert {name for name, fault in family.items() if fault.law not in of_others} == NAMED.keys()
    assert all(f.law in NAMED[name][0] for name, f in family.items() if f.law not in of_others)
    assert {mistake.fault for mistake in MISTAKES} < NAMED.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", NAMED)
def test_a_mistake_is_refuted_by_name(fault: str, dtype: Any) -> None:
    laws, words = NAMED[fault]
    altered = faulty(fault, dtype=dtype)
    for law in OWN:
        findings = hold(law, altered)
        if law in laws:
            assert words in message(findings, Status.FAILED), findings[0].message
            assert findings[0].fault == fault
        elif status(findings) is Status.FAILED:
            assert (findings[0].fault or fault) == fault


def test_what_a_part_cannot_see_passes_there() -> None:
    """Without this, a law that refutes everything would pass all of the above."""
    for fault in ("loss-mean-of-means", "loss-ignored-in-divisor", "loss-ignored-as-token-0"):
        assert status(hold("loss.value", faulty(fault))) is Status.PASSED


def test_a_loss_that_is_too_low_is_said_to_be() -> None:
    (finding,) = hold("loss.value", faulty("loss-scaled"))
    assert "(too low by " in finding.message
    (finding,) = hold("loss.value", faulty("loss-bits"))
    assert "(too high by " in finding.message


#: Mistakes that have no name.
UNKNOWN = {
    "temperature": lambda x, y: right_loss(x / 1.01, y),
    "unfinished": lambda x, y: right_loss(x, y) * float("nan"),
}


@pytest.mark.parametrize("fault", UNKNOWN)
@pytest.mark.parametrize("law", OWN)
def test_what_has_no_name_is_unexplained(law: str, fault: str) -> None:
    findings = hold(law, plain(lambda model: inject_loss(UNKNOWN[fault], model)))
    assert ": unexplained [" in message(findings, Status.FAILED)
    assert findings[0].fault is None


def test_a_mistake_that_two_names_fit_is_unexplained() -> None:
    """With two positions there is one prediction, which is the first and the last."""
    source = checkpoint(Config(n_vocab=11, n_ctx=2, n_embd=6, n_head=1, n_layer=1))
    (finding,) = hold("loss.value", faulty("loss-last-token-dropped", source=source), source)
    assert finding.status is Status.FAILED
    assert ": unexplained" in finding.message


def test_wrong_logits_are_no_wrong_loss() -> None:
    """Only the law that compares end to end says anything, and says where to look."""
    for name in ("exact_gelu", "embedding_scaled", "layers_exchanged", "no_final_norm"):
        altered = port(altered_ports.ALTERATIONS[name])
        assert {status(hold(law, altered)) for law in OWN} == {Status.PASSED}
        said = message(hold("loss.reference", altered), Status.FAILED)
        assert "it is the loss of the port's own logits, which are not the reference's" in said


@pytest.mark.parametrize("fault", ["sum", "not-shifted", "scaled", "label-smoothing", "clipped"])
def test_end_to_end_a_wrong_loss_is_wrong_too(fault: str) -> None:
    said = message(hold("loss.reference", faulty(f"loss-{fault}")), Status.FAILED)
    assert said.startswith("loss[length 17] = ")
    assert "own logits" not in said


def test_a_loss_that_raises_is_the_ports_failure() -> None:
    def alter(model: Any) -> None:
        def loss(logits: Any, labels: Any, **more: Any) -> Any:
            raise IndexError("Target -100 is out of bounds.")

        model.loss_function = loss

    said = message(hold("loss.ignored", port(alter)), Status.FAILED)
    assert said == "the port raised IndexError: Target -100 is out of bounds."


# The budget


@pytest.mark.parametrize("p", [FLOAT32, BFLOAT16, FLOAT16], ids=lambda p: p.name)
@pytest.mark.parametrize("loss", [in_the_models_own_format, gathered, step_by_step])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_budget_holds_what_rounding_does(p: Any, loss: Callable[..., Any], seed: int) -> None:
    """Random logits with scales and offsets of all sizes, and torch's arithmetic on them."""
    rng = np.random.default_rng(seed)
    n, length = int(rng.integers(1, 400)), int(rng.integers(2, 40))
    x = rng.standard_normal((1, length, n)) * 10 ** rng.uniform(-3, 1) + 30 * rng.standard_normal()
    x = np.asarray(p.round(x), np.float64)
    tokens = rng.integers(0, n, (1, length))
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[p.name]
    got = float(loss(torch.from_numpy(x).to(dtype), torch.from_numpy(tokens)))
    found = losses(x, tokens, PRECISIONS[p.name], [1], [])
    nats, budget = found.nats[1][0, :-1], found.budget[0, :-1]
    expected = loss_nats(x[0], tokens[0])
    assert abs(np.mean(nats) - expected) <= nats_apart(x, length)
    assert abs(got - expected) <= limit_max(1) * mean_budget(p, nats, budget)


def test_losses_in_tiles_are_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_verify.numerics.loss.TILE", 3 * CONFIG.n_vocab)
    tokens = np.random.default_rng(3).integers(0, CONFIG.n_vocab, (2, 8))
    source = checkpoint()
    both = np.stack([logits(source.tensors, CONFIG, row) for row in tokens])
    found = losses(both, tokens, FLOAT32, [-1, 0, 1, 2], [0])
    for row in range(2):
        within = nats_apart(both[row], CONFIG.n_vocab)

        def near(expected: Any, within: float = within) -> Any:
            return pytest.approx(expected, rel=0, abs=within)

        assert np.mean(found.nats[1][row, :-1]) == near(loss_nats(both[row], tokens[row]))
        log_p = F.log_softmax(torch.from_numpy(both[row]), dim=-1).numpy()
        assert found.nats[0][row] == near(-log_p[np.arange(8), tokens[row]])
        assert found.nats[2][row, :-2] == near(-log_p[np.arange(6), tokens[row, 2:]])
        assert found.nats[-1][row, 1:] == near(-log_p[np.arange(1, 8), tokens[row, :-1]])
        assert found.nats_of[0][row] == near(-log_p[:, 0])
        assert found.uniform[row] == near(-log_p.mean(-1))
    assert np.isnan(found.nats[2][:, -2:]).all() and np.isnan(found.nats[-1][:, 0]).all()


# What is a label, and what is padding


@pytest.mark.parametrize("name", [n for n, f in CATALOGUE.items() if f.law == "loss.labels"])
def test_a_token_that_is_taken_for_no_label(name: str) -> None:
    (finding,) = hold("loss.labels", faulty(name))
    assert finding.status is Status.FAILED
    assert finding.fault == name, finding.message


@pytest.mark.parametrize("name", [n for n, f in CATALOGUE.items() if f.law == "loss.masked"])
def test_a_mask_and_labels_together(name: str) -> None:
    (finding,) = hold("loss.masked", faulty(name))
    assert finding.status is Status.FAILED
    assert finding.fault == name, finding.message
    (unmasked,) = hold("loss.batch", faulty(name))
    assert unmasked.status is Status.PASSED


def test_the_ids_that_a_module_names_are_tried() -> None:
    made = plain()
    made.module.pad_token_id, made.module.eos_token_id, made.module.unk_id = 7, 100, 900
    (finding,) = hold("loss.labels", made)
    assert finding.status is Status.PASSED
    assert "6 calls" in finding.message  # 0, 100 and 7; 900 is no token
