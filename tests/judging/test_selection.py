"""The library, the command and the plugin make the same request of the same words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from models import CONFIG, checkpoint

import gpt_verify.checkpoint
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.command.cli import main
from gpt_verify.findings import Finding, PortReport, Status
from gpt_verify.judging.options import Options
from gpt_verify.judging.port_runs import PortRuns
from gpt_verify.judging.prepare import prepare
from gpt_verify.judging.run import run
from gpt_verify.judging.selection import request
from gpt_verify.port import Port


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ports that were judged, of which nothing is computed."""
    specs: list[str] = []

    def judge(spec: str, *_: object, **__: object) -> PortReport:
        specs.append(spec)
        return PortReport(spec, "float32", "cpu", "checkpoint", (Finding("x", Status.PASSED, ""),))

    monkeypatch.setattr("gpt_verify.judging.one_port.judge", judge)
    return specs


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The paths that were opened."""
    paths: list[object] = []
    open_checkpoint = gpt_verify.checkpoint.open_checkpoint

    def counted(
        path: Path | None = None, ignore: tuple[str, ...] = ()
    ) -> gpt_verify.checkpoint.Checkpoint:
        paths.append(path)
        return open_checkpoint(path, ignore)

    monkeypatch.setattr("gpt_verify.checkpoint.open_checkpoint", counted)
    return paths


def by_plugin() -> None:
    runs = PortRuns(None, None)
    assert runs.expected()
    for port in runs.ports():
        runs.report(port)


@pytest.mark.parametrize(
    "way",
    [lambda: run(None, []), lambda: main(["run", "--quiet"]), by_plugin],
    ids=["library", "command", "plugin"],
)
def test_the_default_ports(
    way: Callable[[], object], judged: list[str], opened: list[object]
) -> None:
    """``run(None, [])`` once left out the directory beside the default checkpoint."""
    way()
    assert tuple(judged) == request(None, (), Options()).specs
    assert any(spec.startswith("huggingface-eager=") for spec in judged)
    assert len(opened) == 2, "once to judge, and once by this test"


def test_the_expansion_knows_the_architecture(tmp_path: Path) -> None:
    config = replace(CONFIG, architecture="openai-gpt")
    write_huggingface(tmp_path, config, checkpoint(config).tensors)
    asked = request(tmp_path, ["huggingface"], Options(seed=3))
    assert asked.specs == ("huggingface-eager",)
    assert asked.repeat() == f"gpt-verify run --checkpoint {tmp_path} --port huggingface --seed 3"
    (alone,) = asked.repeats()
    assert alone.endswith("--port huggingface-eager --seed 3")


def test_a_port_that_shows_no_parameters_has_no_matching() -> None:
    """Whatever it brings: there is nothing that the matching could place."""
    source, port = checkpoint(), Port()
    port.matching = "anything"  # type: ignore[attr-defined]
    prepared = prepare(port, source, lambda precision: None)  # type: ignore[arg-type]
    assert (prepared.parameters, prepared.matching, prepared.folding) == ((), None, None)
