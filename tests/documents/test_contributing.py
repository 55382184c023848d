"""The examples of CONTRIBUTING.md are what they say: files that work as they stand.

They are written into a copy of the package, in which nothing else is touched, and their tests are
run there, in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: First line of an example: the file that it is.
FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

ENGINE = """
from types import SimpleNamespace


def load(config, tensors):
    return factory(SimpleNamespace(config=config, tensors=tensors))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("contributed")
    for package in ("verify", "reference"):
        unwanted = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / package, made / package, symlinks=True, ignore=unwanted)
    (made / "verify/data").symlink_to(ROOT / "verify/data")
    (made / "gpt_verify").symlink_to("verify")
    for name, text in FILE.findall(TEXT):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text, encoding="utf-8")
    engine = (ROOT / "examples/python/numpy_only.py").read_text(encoding="utf-8")
    (made / "my_engine.py").write_text(engine + ENGINE, encoding="utf-8")
    return made


def test_each_kind_has_a_file_and_its_test() -> None:
    names = [name for name, _ in FILE.findall(TEXT)]
    for kind in ("ports", "laws", "faults", "claims"):
        assert any(name.startswith(f"verify/{kind}/") for name in names), kind
    for name in names:
        assert not (ROOT / name).exists(), f"{name} is a file of the package already"
    (law,) = {name.split("/")[2] for name in names if name.startswith("verify/laws/")}
    assert (ROOT / "verify/laws").is_dir() and not (ROOT / "verify/laws" / law).exists()


def test_one_screen_each() -> None:
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        if section.startswith("Adding"):
            assert len(section.splitlines()) <= 100, section.splitlines()[0]


def test_the_examples_pass(folder: Path) -> None:
    tests = [ROOT / "tests" / part for part in ("", "claims", "faults", "laws")]
    paths = [folder, *tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    count = len(re.findall(r"^def test_", "\n".join(text for _, text in FILE.findall(TEXT)), re.M))
    assert f"{count} passed" in done.stdout


def test_what_was_added_is_part_of_a_run(folder: Path) -> None:
    """The law is checked for every port, and the faults are in the catalogue."""
    code = (
        "import gpt_verify; print(gpt_verify.__file__)\n"
        "from gpt_verify.laws.table import expected_checks\n"
        "from gpt_verify.reference import Config\n"
        "checks = expected_checks(Config(n_vocab=3, n_ctx=2, n_embd=2, n_head=1, n_layer=1))\n"
        "assert ('untouched', None) in checks, checks\n"
        "from gpt_verify.laws.catalogue import CATALOGUE\n"
        "assert {'untouched-sorted', 'gelu-hard-swish'} <= set(CATALOGUE)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).is_relative_to(folder)
