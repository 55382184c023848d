"""What several processes need is made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

from gpt_verify.process.once import found, once

CHILD = """
import sys, time
from pathlib import Path
from gpt_verify.process.once import once
def make():
    with open(sys.argv[2], "a") as calls: calls.write("x")
    time.sleep(0.5)
    return {"made": 1}
assert once(Path(sys.argv[1]), "a\\ud800/../b", make) == {"made": 1}
"""


def test_by_one_of_several_processes(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    words = [sys.executable, "-c", CHILD, str(folder), str(tmp_path / "calls")]
    children = [subprocess.Popen(words, cwd=ROOT) for _ in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"
    assert found(folder, "a\ud800/../b") == {"made": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "shared"]


def test_what_cannot_be_pickled_is_not_shared(tmp_path: Path) -> None:
    made = once(tmp_path, "a", lambda: lambda: 3)
    assert made() == 3
    with pytest.raises(FileNotFoundError):
        found(tmp_path, "a")
    assert once(tmp_path, "a", lambda: 4) == 4


def test_whoever_fails_leaves_it_to_the_next(tmp_path: Path) -> None:
    def fails() -> int:
        raise KeyError("a")

    with pytest.raises(KeyError):
        once(tmp_path, "a", fails)
    assert once(tmp_path, "a", lambda: 3) == 3
    assert once(tmp_path, "a", fails) == 3


def test_elsewhere_each_makes_its_own(tmp_path: Path) -> None:
    assert once(tmp_path / "missing", "a", lambda: 3) == 3
    assert once(tmp_path / "missing", "a", lambda: 4) == 4


def test_without_locks_each_process_makes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_verify.process.once.fcntl", None)
    made = iter(range(2))
    assert [once(tmp_path, "x", lambda: next(made)) for _ in range(2)] == [0, 1]
    assert not list(tmp_path.iterdir())
