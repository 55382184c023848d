"""What the faults would do to the logits of a checkpoint is computed once, where that is asked for:
by what the checkpoint holds, not by which object holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models import checkpoint

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.diagnosis import logits
from gpt_verify.diagnosis.deviations import Deviations
from gpt_verify.findings import Verdict
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.ports.callable import CallablePort
from gpt_verify.reference import Config
from gpt_verify.reference import logits as correct

SIZES = Config(n_vocab=11, n_ctx=5, n_embd=6, n_head=2, n_layer=1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each set that is computed."""
    sets: list[Any] = []

    class Counted(Deviations):
        def __init__(self, *arguments: Any) -> None:
            sets.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(logits, "Deviations", Counted)
    return sets


def verified(source: Checkpoint) -> None:
    def port(tokens: Any) -> Any:
        rows = [correct(source.tensors, source.config, row) for row in tokens]
        return np.stack(rows).astype(np.float32)

    report = judge(
        *("port", source, [seeded(source.config, 5, 0)], None, "cpu", Silent()),
        build=lambda: CallablePort(port, "port", None),
        laws=(),
    )
    assert report.verdict is Verdict.VERIFIED, report.error


def test_equal_checkpoints_share_them(made: list[Any]) -> None:
    with logits.deviations_kept():
        verified(checkpoint(SIZES))
        verified(checkpoint(SIZES))
        assert len(made) == 1
        verified(checkpoint(SIZES, seed=1))
        assert len(made) == 2


def test_nothing_of_a_large_one_is_kept(made: list[Any]) -> None:
    with logits.deviations_kept(most=100):
        verified(checkpoint(SIZES))
        verified(checkpoint(SIZES))
    assert len(made) == 2
