"""The figures of the README are those of the results that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def result(name: str) -> Any:
    return json.loads((ROOT / "docs" / "results" / name).read_text(encoding="utf-8"))


def test_power() -> None:
    summary = result("power.json")["summary"]
    page = (ROOT / "docs" / "power.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) faults in (\d+) trials", page)
    assert said and int(said[2]) == summary["trials"]
    assert f"{said[1]} faults of GPT-2 in {said[2]} trials" in README
    assert f"the {summary['faults']} that change something was refuted" in README
    assert summary["detected"] == summary["faults"]
    assert f"and {summary['explained']} were named" in README
    assert f"the {summary['with_a_site']} that act at a site was found there" in README
    assert summary["localised"] == summary["with_a_site"]
    assert f"In {summary['wrong_name_trials']} trial a wrong name" in README
    logits = summary["logits_only"]
    assert f"{logits['detected']} of {logits['visible']} were refuted" in README
    assert f"and {logits['explained']} named" in README


def test_correct_runs() -> None:
    for name in ("correct-runs.md", "correct-runs-families.md"):
        page = (ROOT / "docs" / "results" / name).read_text(encoding="utf-8")
        page = " ".join(page.split())
        said = re.search(
            r"(\d+) false alarms .* in ([\d,]+) runs of (\d+) correct variants .*? on (\d+) models",
            page,
        )
        assert said and said[1] == "0", name
        assert f"In {said[2]} runs of {said[3]} correct variants on {said[4]} models" in README


def test_faults_from_outside() -> None:
    page = (ROOT / "docs" / "outside.md").read_text(encoding="utf-8")
    row = re.search(r"^\| \*\*all\*\* \|(.*)\|$", page, re.M)
    assert row
    count, _, _, named, wrong, _ = re.findall(r"\*\*(\d+)\*\*", row[1])
    assert f"{count} faults that are not in it" in README
    assert f"{named} of those are named by now, and {wrong} wrongly" in README
    first = re.findall(r"^\| \[`outside-unseen.*\|$", page, re.M)
    sums = [0, 0, 0]
    for line in first:
        cells = [cell.split()[0] for cell in line.split("|")[2:-1]]
        sums = [a + int(cells[i]) for a, i in zip(sums, (0, 3, 4), strict=True)]
    assert f"Of the last {sums[0]}, " in README
    assert f"{sums[1]} were named and {sums[2]} wrongly" in README
