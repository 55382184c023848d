"""What there is no room for is not examined, by name; nothing else changes."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import functional_styles
import numpy as np
import pytest
import torch
from models import INPUTS, checkpoint, failures
from subjects import port

from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.findings import Status, Verdict
from gpt_verify.graph import derivatives as graph_derivatives
from gpt_verify.graph.derivatives import MORE_OBSERVATIONS, noise_bytes
from gpt_verify.graph.directions import WTE_READERS, draw
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.law import a_whole_context, derivatives
from gpt_verify.laws.reference_gradient import LENGTH
from gpt_verify.laws.table import CHECKS
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.ports.torch.gradients import mean_loss
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.process import memory
from gpt_verify.reference import Config

#: OpenAI's largest.
LARGEST = Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48)
#: Vocabulary and context as families have them, and hardly anything else.
WIDE = Config(n_vocab=20_000, n_ctx=33, n_embd=8, n_head=2, n_layer=1)
#: A context so long that its patterns outgrow everything else.
LONG = Config(n_vocab=11, n_ctx=1500, n_embd=12, n_head=3, n_layer=1)


def test_what_has_no_room_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    source = checkpoint()
    report = judge("port", source, INPUTS, None, "cpu", Silent(), build=lambda: port(source=source))
    assert report.error is None and failures(report) == []
    # Whoever has no tokenizer and no second device is told that first.
    lacking = {"device", "tokenizer.encode", "tokenizer.decode"}
    refused = {law.id for law in CHECKS if law.check is not None} - lacking
    assert refused >= {"cache", "causality.bits", "gradient", "symmetry.gradient"}
    for finding in report.findings:
        if finding.id in refused:
            assert finding.status is Status.NOT_EXAMINED, finding
            assert "are free" in finding.message, finding
    assert report.verdict is Verdict.VERIFIED  # its weights, its sites and its logits


def test_a_float64_copy_of_the_whole_is_not_made_without_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A module that reads another one's parameters can only be widened as a whole."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    source = checkpoint()
    made = TorchModule(functional_styles.functional(source), source, "functional")
    report = judge("port", source, INPUTS, None, "cpu", Silent(), build=lambda: made, laws=())
    architecture = [f for f in report.findings if f.id == "architecture"]
    assert {f.status for f in architecture} == {Status.NOT_EXAMINED}
    assert {f.message for f in architecture} == {"needs 0.1 GB, 0 are free"}
    assert failures(report) == []


def test_the_largest_model_leaves_room_on_a_machine_that_holds_it_four_times() -> None:
    """Estimates are no reason to leave a law out where it was seen to run: 24 GB."""
    port_bytes = 4 * 1_557_611_200
    for law in CHECKS:
        # Whoever trains holds a gradient as large as the weights.
        share = 1.6 if law.id.startswith("training.") else 0.6
        assert law.takes(LARGEST) < share * port_bytes, law.id
    assert a_whole_context(LARGEST) > 4 * 1024 * 50257
    assert derivatives(LARGEST) > 8 * 50257 * 1600


def test_noisy_runs_take_what_was_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their logits included, which are most of it where the vocabulary is large."""
    monkeypatch.setattr(graph_derivatives, "LEAST_ROOM_BYTES", 40 << 20)
    weights = DeclaredWeights(synthetic_tensors(WIDE, 0), FLOAT32)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, WIDE.n_vocab, (2, LENGTH))
    drawn = [d for d in draw(WIDE, rng) if d.sites != WTE_READERS]
    exact_DB = np.zeros((len(drawn), len(tokens)))

    def noise(observations: int) -> None:
        graph_derivatives._noise(WIDE, weights, tokens, drawn, FLOAT32, exact_DB, observations)

    noise(4)  # what is kept is made
    tracemalloc.start()
    try:
        noise(MORE_OBSERVATIONS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= noise_bytes(WIDE, LENGTH, len(tokens)), peak


def test_no_law_asks_for_a_whole_context_that_it_has_not_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a whole context has no room, nobody runs more than a part of it."""
    source, asked = checkpoint(LONG), [0]
    declared = [part.takes(LONG) for part in CHECKS]
    # Enough for whatever looks at less than a whole context.
    monkeypatch.setattr(memory, "available_bytes", lambda: a_whole_context(LONG) - 1)
    assert sum(takes >= a_whole_context(LONG) for takes in declared) >= 6

    def build() -> Any:
        made = port(source=source)
        made.module.register_forward_pre_hook(_note_length(asked), with_kwargs=True)
        return made

    inputs = [seeded(LONG, 5, 0)]
    report = judge("port", source, inputs, None, "cpu", Silent(), build=build)
    assert report.error is None and failures(report) == []
    assert report.verdict is Verdict.VERIFIED
    assert 0 < asked[0] <= LONG.n_ctx // 2
    refused = {f.id for f in report.findings if "are free" in f.message}
    assert refused >= {
        "cache",
        "causality.bits",
        "causality.pattern",
        "generation.limit",
        "positions.limit",
    }


def _note_length(asked: list[int]) -> Callable[..., None]:
    def note(module: Any, args: Any, more: Any) -> None:
        ids = args[0] if args else more.get("input_ids")
        if ids is not None:
            asked[0] = max(asked[0], ids.shape[1])

    return note


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_our_loss_adds_nothing_of_its_own_where_the_vocabulary_is_large(dtype: Any) -> None:
    """What it hands back to the logits adds up to zero at each position, to within a few roundings
    of float64, whatever the size of the vocabulary; torch's own is off by hundreds."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.standard_normal((1, 3, 150_000)), dtype=dtype)
    logits[..., 0] = 20.3  # beside which each of the others is little, and all of them are not
    tokens = rng.integers(0, 150_000, (1, 3))

    def off(loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
        given = logits.double().requires_grad_()
        loss(given).backward()
        assert given.grad is not None
        back = given.grad[0, :-1].numpy()
        return max(abs(math.fsum(row)) * 2**53 for row in back)

    targets = torch.as_tensor(tokens[0, 1:])
    ours = off(lambda given: mean_loss(given, tokens))
    theirs = off(lambda given: torch.nn.functional.cross_entropy(given[0, :-1], targets))
    # Half of a softmax each: a sum in pairs of 2^17 numbers is off by 17 roundings at most.
    assert ours <= 17 < theirs
