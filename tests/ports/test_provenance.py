"""Where a port has its weights from is what was seen, and not what is supposed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import INPUTS, checkpoint
from sample_ports import good

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.ports.registry import build
from gpt_verify.text import weights_words

SOURCE = checkpoint()


def own_file(_handed: Checkpoint) -> Any:
    """It loads what it has by itself; here, the same numbers."""
    return good(SOURCE)


def converted(handed: Checkpoint) -> Any:
    return good(handed)


def mixed(handed: Checkpoint) -> Any:
    assert handed.tensors["wte"].shape == (101, 24)
    return good(SOURCE)


def late(handed: Checkpoint) -> Any:
    """It reads the tensors when it is first called."""
    made: list[Any] = []

    def logits(tokens: Any) -> Any:
        made.extend([] if made else [good(handed)])
        return made[0](tokens)

    return logits


@pytest.mark.parametrize(
    ("factory", "seen", "words"),
    [
        (converted, "checkpoint", "converted from the checkpoint under test"),
        (own_file, "port", "the port's own"),
        (mixed, "both", "some from the checkpoint under test, and others of the port's own"),
        (late, "checkpoint", "converted from the checkpoint under test"),
    ],
)
def test_what_was_seen(factory: Callable[..., Any], seen: str, words: str) -> None:
    spec = f"test_provenance:{factory.__name__}"
    report = judge(spec, SOURCE, INPUTS[:1], None, "cpu", Silent(), laws=())
    assert report.verdict is Verdict.VERIFIED, report.error
    assert report.weights_from == seen
    assert weights_words(report.weights_from) == words


def test_what_a_port_says_of_itself_stands() -> None:
    assert weights_words("some/directory") == "the port's own, from some/directory"
    port = build("http://127.0.0.1:9/", SOURCE, None, "cpu")
    assert port.provenance() == "http://127.0.0.1:9/"


def test_a_program_that_is_not_handed_them(tmp_path: Path) -> None:
    assert build("process=cat", SOURCE, None, "cpu").provenance() == "port"
    port = build("process=cat {huggingface}", SOURCE, None, "cpu")
    try:
        assert port.provenance() == "checkpoint"
    finally:
        port.close()
