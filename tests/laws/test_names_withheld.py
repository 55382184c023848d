"""What looks like a known fault, and follows from something else, does not have its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from models import INPUTS, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port

from gpt_verify.findings import Finding, Status, Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.loss.case import Case
from gpt_verify.laws.loss.hypotheses import SHIFTS, explained
from gpt_verify.numerics.loss import losses
from gpt_verify.numerics.precision import FLOAT32


def one(law: str, made: Any) -> Finding:
    (finding,) = hold(law, made)
    assert finding.status is Status.FAILED, finding.message
    return finding


def test_one_sequence_that_is_off_is_no_path_of_its_length() -> None:
    """As where a number falls to the other side of a coarse step: others as long are right."""
    assert one("lengths", faulty("lengths-one")).fault == "lengths-one"
    made = plain()
    right, first = made.logits, []

    def logits(tokens: Any) -> Any:
        found = np.array(right(tokens))
        if tokens.shape == (1, 6):
            first.append(np.array(tokens))
            if np.array_equal(tokens, first[0]):
                found *= 1.02
        return found

    made.logits = logits  # type: ignore[method-assign]
    finding = one("lengths", made)
    assert finding.fault is None
    assert "right with other tokens" in finding.message


def test_a_loss_that_is_not_a_number_has_no_name() -> None:
    tokens = np.arange(10).reshape(2, 5)
    logits = np.random.default_rng(0).normal(size=(2, 5, 11))
    own = losses(logits, tokens, FLOAT32, SHIFTS, [0])
    counted = np.ones_like(tokens, dtype=bool)
    nan = float("nan")
    cases = [Case(f"{n}", own, counted, nan, nan, nan, tokens) for n in range(2)]
    assert not explained(cases).fitting


def test_a_vector_on_a_projection_is_no_residual_stream() -> None:
    """As of a product in two parts, each of which adds a bias."""

    def twice(model: Any) -> None:
        for block in model.transformer.h:
            vector = block.ln_2.bias
            block.attn.c_proj.register_forward_hook(lambda m, x, y, v=vector: y + v)

    source = checkpoint()
    report = judge(
        "port",
        source,
        INPUTS,
        None,
        "cpu",
        Silent(),
        build=lambda: port(twice, source=source),
        laws=(),
    )
    assert report.explained_by == ("constant-added",), report.causes
    assert report.first_divergence == "h.0.resid_mid"


def test_a_site_that_follows_from_its_tensor_has_no_fault_beside_it() -> None:
    """Noise on every second row of wpe is no known damage, and explains the embedding by itself."""
    source = checkpoint()

    def noisy(model: Any) -> None:
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            rows = model.wpe[1::2]
            rows += 0.1 * torch.randn(rows.shape, generator=rng)

    report = judge(
        "port", source, INPUTS, None, "cpu", Silent(), build=lambda: plain(noisy), laws=()
    )
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == ()
