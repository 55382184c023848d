"""The campaign of correct ports on random models: what is run, what is run again, what is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import correct_runs  # noqa: E402  # of the scripts, not installed

from gpt_verify.checkpoint.synthetic import resolve_size  # noqa: E402  # after the one above
from gpt_verify.judging.made_with import made_with  # noqa: E402  # after the one above

INSTRUCTIONS = {"model": "A processor", "blas": [{"library": "openblas", "architecture": "X"}]}


def report(size: str, seed: int, alarms: int = 0, **made: Any) -> dict[str, Any]:
    runs = [
        {"variant": name, "false_alarm": n < alarms, "peers": {"top-1": n == 1}}
        for n, name in enumerate(("eager", "bfloat16"))
    ]
    return {
        "size": size,
        "plan": {"seed": seed},
        "environment": {"made_with": {**made_with(), **made}},
        "correct": runs,
    }


def test_the_models_are_the_same_each_time_and_each_is_one() -> None:
    models = list(correct_runs.sizes(54))
    assert models == list(correct_runs.sizes(60))[:54]
    assert len(set(models)) == 54
    configs = [resolve_size(size) for size in models]
    # Degenerate ones among them.
    for size in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"):
        assert min(getattr(config, size) for config in configs) == 1
    assert any(config.n_head == config.n_embd > 1 for config in configs)


def test_what_was_made_with_other_laws_is_made_again() -> None:
    assert correct_runs.of_today(report("1,2,3,1,1", 0))
    assert not correct_runs.of_today(report("1,2,3,1,1", 0, numerics=-1))
    assert not correct_runs.of_today(report("1,2,3,1,1", 0, laws=["logits"]))
    # Another catalogue of faults judges a correct port no other way.
    assert correct_runs.of_today(report("1,2,3,1,1", 0, faults="another"))


@pytest.mark.parametrize("alarms", [0, 1])
def test_the_page_and_the_exit_status(
    alarms: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [report("101,19,24,4,3", 0), report("67,19,1,1,2", 1, alarms)]
    result = {"reports": reports, "instructions": INSTRUCTIONS}
    (tmp_path / "correct-runs.json").write_text(json.dumps(result))
    assert correct_runs.main(["--out", str(tmp_path)]) == alarms
    assert f"{alarms} false alarms" in capsys.readouterr().out
    page = (tmp_path / "correct-runs.md").read_text()
    assert f"{alarms} false alarms of the suite in 4\nruns of 2 correct variants" in page
    assert f"| 67,19,1,1,2 | 2 | {alarms} |\n" in page
    assert f"| eager | 2 | {alarms} | 0 |\n" in page
    assert "| bfloat16 | 2 | 0 | 2 |\n" in page
    assert "A processor, openblas X." in page
