"""What the benchmark runs, and the table that it writes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import bench  # of the scripts, not installed


def _figures(wall: float, cpu: float, peak: float) -> bench.Figures:
    return bench.Figures(wall, cpu, peak, peak)


def test_ratios_are_of_the_same_round() -> None:
    """The median of 2, 3 and 10; not the ratio of the medians, 20 ÷ 2."""
    walls = [(4.0, 2.0), (30.0, 10.0), (20.0, 2.0)]
    rounds = [(_figures(ours, 1, 1), _figures(theirs, 2, 4)) for ours, theirs in walls]
    assert bench.ratios(rounds) == {"wall_s": 3.0, "cpu_s": 0.5, "peak_mb": 0.25}


def test_a_family_from_its_checkpoint_to_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands are run: a command that fails ends the benchmark."""
    words = "--family qwen3 --size 97,128,24,4,1 --rounds 1 --json"
    bench.main([*shlex.split(words), str(tmp_path / "made.json")])
    made = json.loads((tmp_path / "made.json").read_text())
    ((name, of),) = made["ratios"].items()
    ((ours, theirs),) = made["figures"][name]
    assert of["cpu_s"] == ours["cpu_s"] / theirs["cpu_s"] > 0
    assert made["size"] == "qwen3 97,128,24,4,1" and made["environment"]["made_with"]["laws"]
    line = f"| qwen3 97,128,24,4,1 | {name} | 1 | {of['wall_s']:.2f} |"
    assert line in capsys.readouterr().out


def test_each_command_adds_to_the_one_before() -> None:
    """One port on its own weights; fewer tokens; a second attention."""
    openai, other = Path("ck/openai"), Path("ck/huggingface")
    short, default, both = bench.verifications(Path("ck"), family=False)
    assert default.argv[-2:] == ["--port", f"huggingface-sdpa={other}"]
    assert str(openai) in default.argv and "--length" not in default.argv
    assert short.argv == [*default.argv, "--length", "128"]
    assert both.argv == [*default.argv, "--port", f"huggingface-eager={other}"]
    assert [c.naive[-1] for c in (short, default, both)] == ["128", "1024", "1024"]
