"""``scripts/unrun.py`` lists what no test runs, as coverage measured it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from command import ROOT
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "scripts"))
import unrun

SOURCE = """\
def odd(n):
    if n % 2:
        return True
    return False


def never():
    return 1


def always(n):
    if n:
        n = 2
    return n


odd(3)
always(1)
"""


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a file in a room, measured by coverage itself and by nothing around it."""
    file = tmp_path / "verify" / "lens" / "some.py"
    file.parent.mkdir(parents=True)
    file.write_text(SOURCE)
    (tmp_path / "verify" / "text.py").write_text("x = 1\n")
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "COV_CORE_"))}
    for words in (
        ("run", "--branch", "--source=verify", "verify/lens/some.py"),
        ("json", "--quiet", "-o", "found.json"),
    ):
        command = [sys.executable, "-m", "coverage", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=alone)
    monkeypatch.setattr(unrun, "ROOT", tmp_path)
    return tmp_path / "found.json"


def test_lines_and_branches_with_what_stands_there(measured: Path, capsys: Any) -> None:
    unrun.main([str(measured)])
    lines = capsys.readouterr().out.splitlines()
    assert "verify/lens/some.py" in lines
    assert [line.strip() for line in lines if line.startswith("  ")] == [
        "4      return False",
        "8      return 1",
        "2  never to line 4: if n % 2:",
        "12  never to line 14: if n:",
        "1  x = 1",  # of verify/text.py, of which nothing ran
    ]


def test_the_table_by_room(measured: Path, capsys: Any) -> None:
    unrun.main([str(measured), "--numbers"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["lens", "12", "2", "4", "2"], ["text", "1", "1", "0", "0"]]


def test_one_room(measured: Path, capsys: Any) -> None:
    unrun.main([str(measured), "text"])
    out = capsys.readouterr().out
    assert "verify/text.py" in out and "some.py" not in out and "x = 1" in out


def test_refusals(measured: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        unrun.main([str(measured), "lnes"])
    assert "no room lnes: there are lens, text" in capsys.readouterr().err
    found = json.loads(measured.read_text())
    found["meta"]["branch_coverage"] = False
    measured.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="measured without branches"):
        unrun.main([str(measured)])


@given(st.sets(st.integers(1, 40)))
def test_runs_are_the_numbers_drawn_together(found: set[int]) -> None:
    pairs = list(unrun.runs(sorted(found)))
    assert {n for a, b in pairs for n in range(a, b + 1)} == found
    assert all(b + 1 < a for (_, b), (a, _) in pairwise(pairs))


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("verify/lens/stream.py", "lens"),
        ("gpt_verify/report/lens/html.py", "report"),
        ("gpt_verify/text.py", "text"),
        ("reference/ops.py", "reference"),
        ("gpt_verify/reference/ops.py", "reference"),
    ],
)
def test_the_room_of_a_file(path: str, room: str) -> None:
    assert unrun.File(Path(path), 1, (), (), 0).room == room


def test_tox_ends_with_it() -> None:
    text = (ROOT / "tox.ini").read_text(encoding="utf-8")
    _, _, own = text.partition("[testenv:coverage]")
    assert "python scripts/unrun.py" in own.partition("\n[")[0]
