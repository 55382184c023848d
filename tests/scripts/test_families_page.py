"""docs/families.md is what its script writes from the committed results, and says what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_verify.checkpoint.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import families_page  # noqa: E402  # of the scripts, not installed


def test_the_page_shows_the_results() -> None:
    script = ROOT / "scripts" / "families_page.py"
    done = subprocess.run([sys.executable, os.fspath(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("major", families_page.RESULT)
def test_every_family_is_there_and_verified(major: str) -> None:
    result = json.loads(families_page.RESULT[major].read_text(encoding="utf-8"))
    assert result["environment"]["versions"]["transformers"].startswith(f"{major}.")
    found = result["families"]
    assert list(FAMILIES) == sorted(found, key=list(FAMILIES).index)
    for name, runs in found.items():
        made = {(run["port"].removeprefix("huggingface-"), run["dtype"]) for run in runs}
        asked = FAMILIES[name].attention
        assert made == {(way, dtype) for way in asked for dtype in families_page.DTYPES}
        assert {run["verdict"] for run in runs} == {"verified"}, name
        assert not any(run["checks"]["failed"] for run in runs), name
        assert all("logits" in run["seen"] for run in runs), name


def test_another_result_is_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = families_page.RESULT["5"]
    result = json.loads(path.read_text(encoding="utf-8"))
    before = families_page.page()
    result["families"]["llama"][0]["verdict"] = "refuted"
    del result["families"]["qwen3"]
    altered = tmp_path / path.name
    altered.write_text(json.dumps(result), encoding="utf-8")
    monkeypatch.setitem(families_page.RESULT, "5", altered)
    monkeypatch.setattr(families_page, "marked", lambda root, text, now: text)
    after = families_page.page()
    assert before.count("| refuted |") == 0
    assert after.count("| refuted |") == 1
    assert after.count("\n| qwen3 |") < before.count("\n| qwen3 |")
    assert "Not measured with these versions yet: qwen3." in after
