"""``gpt-verify synth``, ``ports`` and ``--version``; ``doctor`` has a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import SIZE, Run, complaint

from gpt_verify import __version__
from gpt_verify.command.cli import main


class TestSynth:
    def test_writes_and_says_where(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "new"
        assert main(["synth", "--size", SIZE, "--format", "huggingface", str(out)]) == 0
        assert str(out) in capsys.readouterr().out

    def test_seed(self, tmp_path: Path) -> None:
        files = {}
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            words = ["--size", SIZE, "--format", "huggingface", "--seed", str(seed)]
            assert main(["synth", *words, str(tmp_path / name)]) == 0
            files[name] = (tmp_path / name / "model.safetensors").read_bytes()
        assert files["a"] == files["b"] != files["c"]

    @pytest.mark.parametrize(
        "size", ["125M", "1,2,3", "97,24,12,5,2", "0,1,1,1,1", f"{1 << 50},1,1,1,1"]
    )
    def test_impossible_size(
        self, size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "new"
        assert main(["synth", "--size", size, "--format", "huggingface", str(out)]) == 2
        complaint(capsys.readouterr().err)
        assert not out.exists()

    def test_does_not_overwrite(self, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["synth", "--size", SIZE, "--format", "huggingface", str(tiny)]) == 2
        assert "not an empty directory" in complaint(capsys.readouterr().err)

    def test_converting_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["synth", "--convert", str(tmp_path / "no"), str(tmp_path / "out")]) == 2
        assert "no such directory" in complaint(capsys.readouterr().err)
        assert not (tmp_path / "out").exists()


class TestOthers:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert stop.value.code == 0
        assert capsys.readouterr().out == f"gpt-verify {__version__}\n"

    def test_ports(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["ports"]) == 0
        out = capsys.readouterr().out
        for name in ("openai-tf", "huggingface-eager", "huggingface-sdpa"):
            assert f"\n{name}" in f"\n{out}"

    def test_ports_says_why_one_is_not_available(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert main(["ports"]) == 0
        assert "not available: tensorflow is not installed" in capsys.readouterr().out

    def test_nothing_installed_is_nothing_judged(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        status, _, err = run(port=None)
        assert status == 2
        assert "no built-in port can run" in complaint(err)
