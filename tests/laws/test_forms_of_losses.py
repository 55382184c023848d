"""What is wrong with a loss, and is in no catalogue, is said from the losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_ports import faulty, plain
from subjects import hold
from torch.nn import functional as F

from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Status
from gpt_verify.laws.loss.forms import NAMES


def _pairs(logits: Any, labels: Any) -> tuple[Any, Any]:
    return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def _in_a_circle(logits: Any, labels: Any) -> Any:
    return F.cross_entropy(logits.flatten(0, 1), labels.roll(-1, 1).flatten())


def _first_row_alone(logits: Any, labels: Any) -> Any:
    return F.cross_entropy(*_pairs(logits[:1], labels[:1]))


def _focal(logits: Any, labels: Any) -> Any:
    x, y = _pairs(logits, labels)
    nats = F.cross_entropy(x, y, reduction="none")
    return ((1 - (-nats).exp()) ** 2 * nats)[y != -100].mean()


def _with_partition(logits: Any, labels: Any) -> Any:
    x, y = _pairs(logits, labels)
    return F.cross_entropy(x, y) + 2e-3 * x[y != -100].logsumexp(-1).square().mean()


def _with_a_constant(logits: Any, labels: Any) -> Any:
    return F.cross_entropy(*_pairs(logits, labels)) + 0.125


def _whole_chunks(logits: Any, labels: Any) -> Any:
    x, y = _pairs(logits, labels)
    n = len(y) // 4 * 4 or len(y)
    return F.cross_entropy(x[:n], y[:n])


def _mean_of_chunks(logits: Any, labels: Any) -> Any:
    x, y = _pairs(logits, labels)
    each = zip(x.split(4), y.split(4), strict=True)
    return torch.stack([F.cross_entropy(*one) for one in each if (one[1] != -100).any()]).mean()


LOSSES: dict[str, tuple[Callable[[Any, Any], Any], str, str, str]] = {
    "in-a-circle": (_in_a_circle, "loss.value", "loss-pairs", "its own first token"),
    "first-row": (_first_row_alone, "loss.batch", "loss-pairs", "only the first row of a batch"),
    "focal": (_focal, "loss.value", "loss-function", "γ = 2"),
    "z-loss": (
        _with_partition,
        "loss.value",
        "loss-added",
        "0.002 times the mean square of the logarithm of the partition sum (z-loss)",
    ),
    "whole-chunks": (
        _whole_chunks,
        "loss.value",
        "loss-chunks",
        "tokens that do not fill a chunk of 4 are left out",
    ),
    "mean-of-chunks": (
        _mean_of_chunks,
        "loss.value",
        "loss-chunks",
        "it is the mean over chunks of 4 tokens of each chunk's mean",
    ),
    "logits-of-zero": (
        lambda logits, labels: F.cross_entropy(*_pairs(F.pad(logits, (0, 27)), labels)),
        "loss.value",
        "loss-function",
        "27 logits of 0 count beside those of the vocabulary",
    ),
    "constant": (_with_a_constant, "loss.ignored", "loss-added", "0.125 is added to the loss"),
}


def altered(loss: Callable[[Any, Any], Any]) -> Any:
    return plain(
        lambda model: wrap(model, "loss", lambda own, right, logits, labels: loss(logits, labels))
    )


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_does_is_said(name: str) -> None:
    loss, law, form, words = LOSSES[name]
    (finding,) = hold(law, altered(loss))
    assert finding.status is Status.FAILED
    assert finding.fault == form, finding.message
    assert words in finding.message


def test_every_form_of_a_loss_was_planted() -> None:
    assert {form for _, _, form, _ in LOSSES.values()} == set(NAMES)


def test_a_temperature_has_no_form() -> None:
    (finding,) = hold("loss.value", altered(lambda x, y: F.cross_entropy(*_pairs(x / 1.01, y))))
    assert finding.status is Status.FAILED
    assert finding.fault is None, finding.message


@pytest.mark.parametrize("name", ["loss-sum", "loss-label-smoothing", "loss-clipped"])
def test_what_the_catalogue_knows_keeps_its_name(name: str) -> None:
    (finding,) = hold("loss.value", faulty(name))
    assert finding.fault == name


def test_a_part_that_a_form_leaves_as_it_is_has_no_name() -> None:
    """One row has nothing after it."""

    def across(logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits.flatten(0, 1)[:-1], labels.flatten()[1:])

    (value,), (ignored,) = (
        hold("loss.value", altered(across)),
        hold("loss.ignored", altered(across)),
    )
    assert ignored.status is Status.PASSED
    assert value.fault == "loss-pairs"


class _SlopeOfSilu(torch.autograd.Function):
    """GELU forwards, and the derivative of x sigmoid(x) backwards."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, d: Any) -> Any:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return d * (s + x * s * (1 - s))


def test_the_slope_of_another_activation_is_said() -> None:
    def alter(model: Any) -> None:
        for block in model.h:
            wrap(block.mlp, "act", lambda own, right, x: _SlopeOfSilu.apply(x))

    failed = [f for f in hold("gradient", plain(alter)) if f.status is Status.FAILED]
    assert {finding.fault for finding in failed if finding.fault} == {"gradient-of-silu"}
