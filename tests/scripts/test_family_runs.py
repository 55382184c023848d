"""``correct_runs.py --families``: which models are drawn, what is run again, what is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from families import read

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import correct_runs  # noqa: E402  # of the scripts, not installed
import family_runs  # noqa: E402  # likewise

from gpt_verify.checkpoint.families import FAMILIES  # noqa: E402  # after the ones above
from gpt_verify.checkpoint.family_files import example  # noqa: E402  # likewise
from gpt_verify.judging.run import environment  # noqa: E402  # likewise
from gpt_verify.laws.table import CHECKS  # noqa: E402  # likewise


def row(family: str, seed: int, variant: str, alarm: bool = False) -> dict[str, Any]:
    return {
        "family": family,
        "seed": seed,
        "variant": variant,
        "false_alarm": alarm,
        "baselines": ["top-1"] if variant.endswith("bfloat16") else [],
    }


def test_every_family_has_models_of_the_sizes_that_are_drawn() -> None:
    drawn = [family_runs.drawn(seed) for seed in range(20)]
    assert drawn == [family_runs.drawn(seed) for seed in range(20)]
    assert len(set(drawn)) == 20
    for name in FAMILIES:
        for sizes in drawn:
            config = read(example(name, sizes))
            assert (config.n_vocab, config.n_ctx, config.n_embd) == sizes[:3]


def test_the_laws_take_turns() -> None:
    """Over all turns each law is checked once."""
    turns = [family_runs.laws_of(turn) for turn in range(family_runs.TURNS)]
    assert sorted(law for laws in turns for law in laws) == sorted(law.id for law in CHECKS)
    assert family_runs.laws_of(3) == family_runs.laws_of(3 + family_runs.TURNS)


def test_what_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"{family_runs.NAME}.json"
    known = [row(name, 0, "eager") for name in FAMILIES if name != "phi"]
    path.write_text(json.dumps({"environment": environment(), "runs": known}))
    asked = []

    def judged(family: str, seed: int) -> list[dict[str, Any]]:
        asked.append((family, seed))
        return [row(family, seed, "eager")]

    monkeypatch.setattr(family_runs, "judged", judged)
    family_runs.run(tmp_path, 1, 100.0)
    assert asked == [("phi", 0)]
    assert len(json.loads(path.read_text())["runs"]) == len(FAMILIES)
    family_runs.run(tmp_path, 2, -1.0)  # no time is left
    assert len(asked) == 1
    text = json.loads(path.read_text())
    text["environment"]["made_with"]["numerics"] = -1
    path.write_text(json.dumps(text))
    assert family_runs.stored(path)["runs"] == []


@pytest.mark.parametrize("alarm", [False, True])
def test_the_page_and_the_exit_status(
    alarm: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        row("llama", 0, "eager"),
        row("llama", 1, "eager, bfloat16"),
        row("phi", 0, "eager", alarm),
    ]
    path = tmp_path / f"{family_runs.NAME}.json"
    path.write_text(json.dumps({"environment": environment(), "runs": runs}))
    assert correct_runs.main(["--families", "--out", str(tmp_path)]) == alarm
    assert f"{int(alarm)} false alarms" in capsys.readouterr().out
    page = path.with_suffix(".md").read_text()
    assert f"{int(alarm)} false alarms of the suite in\n3 runs of 2 correct variants" in page
    assert "on 3 models\nof 2 families" in page
    assert "| llama | 2 | 2 | 0 |\n" in page
    assert f"| phi | 1 | 1 | {int(alarm)} |\n" in page
    assert "| eager, bfloat16 | 1 | 0 |" in page
