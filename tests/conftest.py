"""A small checkpoint, and the command, for every test that wants them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import PORTS, SIZE, Run

from verify.cli import main


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which no two dimensions are equal."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    assert main(["synth", "--size", SIZE, "--format", "huggingface", str(directory)]) == 0
    return directory


@pytest.fixture
def damaged(tiny: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "damaged"))


@pytest.fixture
def wrong(tiny: Path) -> list[str]:
    """A command line that ends in a refutation."""
    port = f"{PORTS}:twice_too_large"
    return ["run", "--checkpoint", str(tiny), "--length", "5", "--port", port]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tiny: Path) -> Run:
    """``gpt-verify run`` in this process: ``(exit status, standard output, standard error)``."""

    def run(*words: object, port: str | None = "good", checkpoint: Path = tiny) -> tuple:
        argv = ["run", "--checkpoint", str(checkpoint), "--length", "5", *map(str, words)]
        if port is not None:
            argv += ["--port", f"{PORTS}:{port}"]
        capfd.readouterr()
        try:
            status = main(argv)
        except SystemExit as stop:  # argparse's own
            status = stop.code
        return (status, *capfd.readouterr())

    return run
