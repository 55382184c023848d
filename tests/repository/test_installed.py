"""Installed, the project takes one name: a user's own ``verify`` and ``reference`` stay theirs.

The wheel is built and installed for it, and used in a project that has both names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROJECT = {
    "verify/__init__.py": "MINE = 'my own'\n",
    "verify/plugin.py": "raise AssertionError('not for pytest')\n",
    "reference.py": "def answer():\n    return 42\n",
    "test_mine.py": """
import reference
import verify


def test_my_names_are_mine():
    assert (verify.MINE, reference.answer()) == ("my own", 42)
""",
    "port.py": """
import numpy as np
import reference
import verify


def factory(checkpoint):
    assert (verify.MINE, reference.answer()) == ("my own", 42)
    from gpt_verify.reference import logits

    def run(tokens):
        rows = [logits(checkpoint.tensors, checkpoint.config, row) for row in tokens]
        return np.stack(rows).astype(np.float32)

    return run
""",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy, because a build leaves files behind that the next one would take for ours."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("verify", "reference"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    (source / "gpt_verify").symlink_to("verify")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which the wheel is what is installed."""
    site = tmp_path_factory.mktemp("site")
    _pip("install", "--no-deps", "--target", site, wheel)
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_wheel_has_one_name_and_all_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gpt_verify"}
    tracked = subprocess.run(
        ["git", "ls-files", "verify", "reference"], cwd=ROOT, capture_output=True, text=True
    )
    files = [f for f in tracked.stdout.splitlines() if f != "verify/reference"]
    if not files:  # an archive of the sources is no clone
        folders = ("verify", "reference")
        files = [str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*.py")]
    expected = {
        f"gpt_verify/{f.removeprefix('verify/')}" for f in files if f.endswith((".py", ".json"))
    }
    assert expected and expected <= names, sorted(expected - names)


@pytest.mark.parametrize("command", [["-m", "pytest"], ["-c", "import pytest; pytest.main()"]])
def test_a_project_runs_its_tests(
    project: Path, environment: dict[str, str], command: list[str]
) -> None:
    """With the plugin loaded, and the project's folder on the path or not."""
    words = [sys.executable, *command]
    if "-m" in command:
        words += ["-q"]
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_port_imports_its_own_names(project: Path, environment: dict[str, str]) -> None:
    site = environment["PYTHONPATH"]
    words = ["run", "--port", "port.py:factory", "--length", "5", "--quiet"]
    done = subprocess.run(
        [sys.executable, f"{site}/bin/gpt-verify", *words],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified: 1 port" in done.stdout + done.stderr


def test_the_names_of_the_checkout_are_not_there(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    code = (
        "import importlib.util, gpt_verify, os\n"
        "assert gpt_verify.__file__.startswith(os.environ['PYTHONPATH'])\n"
        "assert importlib.util.find_spec('verify') is None\n"
        "assert importlib.util.find_spec('reference') is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def _pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
