"""``gpt-verify doctor``: what it says of an installation that is whole, and of one that is not."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from file_layouts import HUB, openai
from huggingface_directory import state, write

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


def test_a_torch_that_says_nothing_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in ("", "print('no JSON')"):
        monkeypatch.setattr(doctor, "_ASK_TORCH", code)
        (line,) = doctor._torch_lines()
        assert line.startswith("torch is installed and does not answer: ")


@pytest.mark.parametrize(("tf32", "says"), [("True", "on"), ("False", "off")])
def test_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch, tf32: str, says: str) -> None:
    """TF32 is what most often makes a correct port wrong there."""
    answer = f"dict(threads=3, devices=['one', 'other'], tf32={tf32})"
    monkeypatch.setattr(doctor, "_ASK_TORCH", f"import json; print(json.dumps({answer}))")
    assert list(doctor._torch_lines()) == [
        "torch threads: 3",
        "cuda: one, other",
        f"tf32 in matrix products: {says}",
    ]


@pytest.mark.parametrize(
    ("heads", "more", "says"),
    [
        (3, 0.0, ""),
        (3, 1.0, "huggingface: ln_f/b differs from .*openai"),
        (2, 0.0, "openai and .*huggingface: different sizes"),
    ],
    ids=["the same", "another", "another size"],
)
def test_both_formats_are_one_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, heads: int, more: float, says: str
) -> None:
    openai()(tmp_path / "openai")
    values = state()
    values["transformer.ln_f.bias"] += more
    (tmp_path / "huggingface").mkdir()
    write(tmp_path / "huggingface", values, **{**HUB, "n_head": heads})
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(tmp_path)}\n"
        for file in sorted(tmp_path.rglob("*"))
        if file.is_file()
    ]
    (tmp_path / doctor.MANIFEST).write_text("".join(lines))
    monkeypatch.setattr(
        "gpt_verify.checkpoint.default_checkpoint", lambda format="openai": tmp_path / format
    )
    if not says:
        assert "both formats" in doctor.check_default()
        return
    with pytest.raises(CheckpointError, match=says):
        doctor.check_default()
