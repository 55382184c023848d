"""A regression between two commits of a port, as docs/report.md says that it is found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

CORRECT = (ROOT / "examples" / "python" / "modules.py").read_text(encoding="utf-8")
GELU = 'nn.GELU("tanh")'
#: Commits, the oldest first: message, and the port as it is then.
COMMITS = {
    "correct": CORRECT,
    "does not compile": CORRECT + "\ndef forward(:\n",
    "a comment": CORRECT + "\n# Refactored.\n",
    "exact GELU": CORRECT.replace(GELU, "nn.GELU()") + "\n# Refactored.\n",
    "another comment": CORRECT.replace(GELU, "nn.GELU()") + "\n# And again.\n",
}
FIRST, LAST = "correct", "another comment"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The command on the PATH, and a user of git."""
    programs = tmp_path / "bin"
    programs.mkdir()
    command = programs / "gpt-verify"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gpt_verify "$@"\n')
    command.chmod(0o755)
    who = {
        f"GIT_{role}_{of}": "author@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for of in ("NAME", "EMAIL")
    }
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    quiet = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    return {**os.environ, **who, **quiet, "PATH": path}


@pytest.fixture
def repository(tmp_path: Path, tiny: Path, environment: dict[str, str]) -> Path:
    """A repository in which the port is changed from commit to commit."""
    assert GELU in CORRECT
    directory = tmp_path / "port"
    directory.mkdir()

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=directory, env=environment, check=True)

    git("init", "-q", "-b", "main")
    settings = f"[tool.gpt-verify]\ncheckpoint = '{tiny}'\nlengths = [5]\n"
    (directory / "pyproject.toml").write_text(settings)
    for message, port in COMMITS.items():
        (directory / "my_port.py").write_text(port, encoding="utf-8")
        git("add", "pyproject.toml", "my_port.py")
        git("commit", "-q", "-m", message)
        if message == FIRST:
            git("tag", "v1.0")
    return directory


def documented() -> list[str]:
    """The commands, from the page."""
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    section = page.split("### Between two commits\n")[1]
    found = re.search("```sh\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def test_the_regression_is_shown_and_its_commit_found(
    repository: Path, environment: dict[str, str]
) -> None:
    def run(line: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", line], cwd=repository, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    before, after, compare, start, bisect = documented()
    assert run(before)[0] == 0
    assert run(after)[0] == 1
    status, said = run(compare)
    assert status == 1
    assert "verified → refuted (worse)" in said
    assert "first divergence: none → h.0.mlp.act" in said
    assert "explained by: none → gelu-erf" in said
    assert run(start)[0] == 0
    status, said = run(bisect)
    assert status == 0, said
    found = re.search(r"^[0-9a-f]{40} is the first bad commit\n(.*?)^ my_port", said, re.M | re.S)
    assert found is not None, said
    assert "exact GELU" in found[1]
