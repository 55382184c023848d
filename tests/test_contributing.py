"""The examples of CONTRIBUTING.md are what they say: files that work as they stand.

They are written as files of a folder that the package is told to look into, and their tests are run
in a process of their own, because some of them register themselves.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_verify.laws.table import CHECKS, Law

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: First line of an example: the file that it is.
FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

#: Makes the examples' files part of the package, and gives the example of a port an engine.
CONFTEST = """
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
for folder in ("verify/ports", "verify/laws", "verify/faults", "verify/claims"):
    import_module(folder.replace("/", ".")).__path__.append(str(HERE / folder))
sys.path.insert(0, str(HERE))
"""
ENGINE = """
from types import SimpleNamespace


def load(config, tensors):
    return factory(SimpleNamespace(config=config, tensors=tensors))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("contributed")
    for name, text in FILE.findall(TEXT):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text, encoding="utf-8")
    (made / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    engine = (ROOT / "examples/python/numpy_only.py").read_text(encoding="utf-8")
    (made / "my_engine.py").write_text(engine + ENGINE, encoding="utf-8")
    return made


def test_the_line_of_a_law_is_one() -> None:
    (line,) = re.findall(r"^```python\n# a line of CHECKS\n(Law.*)\n```$", TEXT, re.MULTILINE)
    made = eval(line, {"Law": Law, "check_untouched": lambda subject: []})
    assert made.id == "untouched"
    assert made.id not in {law.id for law in CHECKS}


def test_each_kind_has_a_file_and_its_test() -> None:
    names = [name for name, _ in FILE.findall(TEXT)]
    for kind in ("ports", "checks", "faults", "claims"):
        assert any(name.startswith(f"verify/{kind}/") for name in names), kind
    for name in names:
        assert not (ROOT / name).exists(), f"{name} is a file of the package already"
    assert len([name for name in names if name.startswith("tests/")]) == len(names) // 2


def test_one_screen_each() -> None:
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        if section.startswith("Adding"):
            assert len(section.splitlines()) <= 100, section.splitlines()[0]


def test_the_examples_pass(folder: Path) -> None:
    paths = [ROOT, ROOT / "tests", ROOT / "tests/claims", ROOT / "tests/faults"]
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
    tests = len(re.findall(r"^def test_", "\n".join(text for _, text in FILE.findall(TEXT)), re.M))
    assert f"{tests} passed" in done.stdout
