"""What the oracle's runs are kept for: the next port, to which they must be as good as new ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import CONFIG, INPUTS, checkpoint
from rounding import summed

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.graph import cascade
from gpt_verify.graph.cascade import Lockstep
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.numerics.precision import BFLOAT16, FLOAT32
from gpt_verify.numerics.recording import Recording, run_bytes
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights
from gpt_verify.sites import sites

TOKENS_T = seeded(CONFIG, 7, 0).tokens[0]
SITES = [name for name in sites(CONFIG) if name != "logits"]


def recorded(room_bytes: int, source: Checkpoint) -> DeclaredWeights:
    weights = DeclaredWeights(source.tensors, FLOAT32)
    weights.recording = Recording(room_bytes)
    return weights


def values(weights: DeclaredWeights) -> list[tuple[np.ndarray, np.ndarray]]:
    lockstep = Lockstep(CONFIG, weights, FLOAT32, TOKENS_T)
    found = [lockstep.value(name) for name in SITES]
    assert None not in found
    return found  # type: ignore[return-value]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the sequences that the oracle was run on."""
    lengths: list[int] = []
    run = cascade._run

    def counted(config, weights, tokens_T, *noise):  # type: ignore[no-untyped-def]
        lengths.append(len(tokens_T))
        yield from run(config, weights, tokens_T, *noise)

    monkeypatch.setattr(cascade, "_run", counted)
    return lengths


def test_it_is_run_once_and_read_again_bit_for_bit(runs: list[int]) -> None:
    weights = recorded(1 << 20, checkpoint())
    first, again = values(weights), values(weights)
    fresh = values(DeclaredWeights(checkpoint().tensors, FLOAT32))
    assert len(runs) == 2
    for a, b, c in zip(first, again, fresh, strict=True):
        for i in range(2):
            np.testing.assert_array_equal(a[i], b[i])
            np.testing.assert_array_equal(a[i], c[i])


def test_a_reader_that_stopped_early_leaves_the_rest_to_the_next(runs: list[int]) -> None:
    weights = recorded(1 << 20, checkpoint())
    Lockstep(CONFIG, weights, FLOAT32, TOKENS_T).value("h.1.ln_2")
    whole = values(weights)
    assert len(runs) == 1
    np.testing.assert_array_equal(
        whole[-1][0], values(DeclaredWeights(checkpoint().tensors, FLOAT32))[-1][0]
    )


def test_what_has_no_room_is_run_again(runs: list[int]) -> None:
    weights = recorded(run_bytes(CONFIG, len(TOKENS_T)) - 1, checkpoint())
    values(weights), values(weights)
    assert len(runs) == 2


def test_its_size_is_that_of_the_arrays() -> None:
    lockstep = Lockstep(CONFIG, recorded(1 << 20, checkpoint()), FLOAT32, TOKENS_T)
    size = 0
    for name in SITES:
        lockstep.value(name)
        size += sum(array.nbytes for array in lockstep._passed[name])
    assert size == run_bytes(CONFIG, len(TOKENS_T))


def test_precisions_do_not_share() -> None:
    shared = SharedWeights(checkpoint().tensors, record=True)
    assert shared(FLOAT32) is shared(FLOAT32)
    assert shared(FLOAT32).recording is not shared(BFLOAT16).recording


def test_a_port_is_judged_alike_alone_and_after_others() -> None:
    """Findings, scores and evidence: nothing depends on who was judged before."""
    source = checkpoint()
    shared = SharedWeights(source.tensors, record=True)
    ports = ("huggingface-sdpa", "huggingface-eager")
    for first in ports:
        judge(first, source, INPUTS, None, "cpu", Silent(), shared=shared)
    for spec in ports:
        alone = judge(spec, checkpoint(), INPUTS, None, "cpu", Silent())
        after = judge(spec, source, INPUTS, None, "cpu", Silent(), shared=shared)
        assert replace(after, seconds=0.0) == replace(alone, seconds=0.0)


def test_heads_one_at_a_time_are_judged_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst element, its index and every statistic, to the last digits."""
    whole = judge("huggingface-eager", checkpoint(), INPUTS, None, "cpu", Silent(), laws=())
    monkeypatch.setattr("gpt_verify.graph.tiles.HEAD_ELEMENTS", 1)
    tiled = judge("huggingface-eager", checkpoint(), INPUTS, None, "cpu", Silent(), laws=())
    # A score is a root of a mean over all elements of a site, of which the logits have most.
    elements = sum(item.tokens.size for item in INPUTS) * CONFIG.n_vocab
    for a, b in zip(whole.findings, tiled.findings, strict=True):
        assert (a.id, a.site, a.status, a.message) == (b.id, b.site, b.status, b.message)
        assert a.score is None or a.score == summed(b.score, elements + 4)
