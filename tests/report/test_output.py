"""A report file is there as a whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpt_verify.errors import UsageError
from gpt_verify.report.output import OutputFile


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    made = OutputFile(out)
    assert list(tmp_path.iterdir()) == []
    made.write("text é")
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert out.read_text(encoding="utf-8") == "text é"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~umask


def test_keeps_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    made = OutputFile(out)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        made.write("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert out.read_text() == "old"


def test_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("target")
    OutputFile(link).write("new")
    assert link.is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_device_is_written_in_place() -> None:
    OutputFile(Path("/dev/null")).write("text")
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("where", ["", "missing/out.json"])
def test_refuses_early(tmp_path: Path, where: str) -> None:
    with pytest.raises(UsageError, match=r"is a directory|cannot be written"):
        OutputFile(tmp_path / where)
    assert list(tmp_path.iterdir()) == []
