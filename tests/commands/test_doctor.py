"""``gpt-verify doctor``: what it says of an installation that is whole, and of one that is not."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from gpt_verify.command import doctor
from gpt_verify.command.cli import main
from gpt_verify.errors import CheckpointError


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Two files and a manifest, as ``sha256sum`` writes it."""
    (tmp_path / "openai").mkdir()
    files = {"openai/a": b"first", "b": b"second"}
    lines = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    (tmp_path / doctor.MANIFEST).write_text("".join(lines))
    return tmp_path


def test_intact(shipped: Path) -> None:
    assert doctor.check_manifest(shipped) == 2
    subprocess.run(["sha256sum", "--check", "--quiet", doctor.MANIFEST], cwd=shipped, check=True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "b").write_bytes(b"Second"), "b: differs from SHA256SUMS"),
        (lambda d: (d / "b").unlink(), "missing: b"),
        (lambda d: (d / "c").write_bytes(b""), "not in SHA256SUMS: c"),
        (lambda d: (d / doctor.MANIFEST).unlink(), "SHA256SUMS: cannot be read"),
    ],
    ids=["changed", "missing", "surplus", "no_manifest"],
)
def test_damaged(shipped: Path, damage: object, says: str) -> None:
    damage(shipped)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=says):
        doctor.check_manifest(shipped)


def test_an_empty_manifest_vouches_for_nothing(tmp_path: Path) -> None:
    (tmp_path / doctor.MANIFEST).write_text("")
    with pytest.raises(CheckpointError, match="lists no file"):
        doctor.check_manifest(tmp_path)


def test_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("gpt-verify", "python", "numpy", "torch", "transformers", "tensorflow"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), name
    assert "default checkpoint: intact" in out
    assert "cuda: " in out


def test_damaged_checkpoint_is_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "gpt_verify.checkpoint.default_checkpoint", lambda format="openai": tmp_path / format
    )
    assert main(["doctor"]) == 2
    assert "default checkpoint: DAMAGED: " in capsys.readouterr().out


def test_missing_dependency_is_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "rich" else "1")
    monkeypatch.setattr(doctor, "check_default", lambda: "intact")
    monkeypatch.setattr(doctor, "_torch_lines", lambda: [])
    assert main(["doctor"]) == 2
    assert "rich not installed" in capsys.readouterr().out


def test_broken_torch_is_said_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", "raise ImportError('libcuda is too old')")
    assert list(doctor._torch_lines()) == [
        "torch is installed and cannot be imported: ImportError: libcuda is too old"
    ]
