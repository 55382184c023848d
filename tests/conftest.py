"""A small checkpoint, and the command, for every test that wants them."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cases
import pytest
from browser import Opener, chromium
from command import PORTS, SIZE, Run
from families import Sources, written
from hypothesis import HealthCheck, settings

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.command.cli import main
from gpt_verify.diagnosis.logits import deviations_kept
from gpt_verify.laws.calls import check as calls
from gpt_verify.process import pool

# What is printed is tested as anybody sees it; what GitHub is told has tests of its own.
for _name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)

# The processes of a run of the tests are the cores'; the command takes no others by itself.
os.environ.setdefault(pool.VARIABLE, "1")

#: Some thousand ports are judged here. Each is called as often over and over as a large model is,
#: and as a small one where that is the matter: ``many_calls``.
MANY_CALLS, calls.MOST = calls.MOST, calls.FEWEST

# Time means nothing on a shared machine, and a check of the health of the data is one of time.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Other examples every time, and many: pytest --hypothesis-profile=long (tests/strategies.py).
settings.register_profile("long", settings.get_profile("ci"), derandomize=False)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    cases.add_option(parser)


def pytest_report_header(config: pytest.Config) -> str:
    part = cases.part_of(config)
    which = "all" if part is None else f"part {part} of 0 … {cases.PARTS - 1}; --cases all"
    return f"cases of large tables: {which}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a GPU are shown as not run where there is none."""
    cases.choose(config, items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="not run: no CUDA device"))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector of garbage need not look through it again, which
    takes half a second, some thousand times."""
    gc.collect()
    gc.freeze()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def shared_deviations() -> Iterator[None]:
    """What every fault would do to the logits of a checkpoint is computed once: most ports that are
    judged here are functions, and it is most of what such a judgement takes. Of what is not tiny
    nothing stays in memory."""
    with deviations_kept(100_000):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which no two dimensions are equal."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    assert main(["synth", "--size", SIZE, "--format", "huggingface", str(directory)]) == 0
    return directory


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Each family's checkpoint, as it is read from its directory."""
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda name: open_checkpoint(written(folder / name, name)))


@pytest.fixture
def many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model is called as often as its user's is."""
    monkeypatch.setattr(calls, "MOST", MANY_CALLS)


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


@pytest.fixture(scope="session")
def chromium_browser() -> Iterator[Any]:
    """One Chromium for all tests; skipped, or failed where it is required, without one."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium_browser: Any, tmp_path: Path) -> Iterator[Opener]:
    """Open an HTML page in a real browser: ``open_page(html)`` is a ``browser.Tab``."""
    opener = Opener(chromium_browser, tmp_path)
    yield opener
    opener.close()
