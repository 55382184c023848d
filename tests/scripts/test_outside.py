"""The faults that are kept out of the catalogue: which they are, and a few of them judged."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from models import INPUTS, checkpoint, judged
from outside.record import AREAS, every

from gpt_verify.findings import Verdict

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import expected  # noqa: E402  # of the scripts, not installed
import outside_page as script  # noqa: E402  # of the scripts, too

PORTS = ROOT / "tests" / "outside" / "ports.py"
FAULTS = every()
#: One of each kind: a part, tensors, the finished model, and logits alone.
JUDGED = ("eps-of-bert", "eight-bits", "head-with-bias", "shifted-twice", "logits-gelu-quick")


def port(name: str) -> str:
    return f"{PORTS}:{name}"


def test_there_are_many_and_each_says_what_must_be_said() -> None:
    assert len(FAULTS) >= 60
    assert {area for area, _ in FAULTS.values()} == set(AREAS)
    assert len({fault.digest for _, fault in FAULTS.values()}) == len(FAULTS)
    for _, fault in FAULTS.values():
        assert fault.wrong.endswith(".")
        assert fault.origin
        # Words that anything has would let any name pass.
        assert re.search(fault.words, "") is None
        # What every second name has says nothing.
        assert expected.chance(fault.words) < 1 / 2, fault.name


def test_the_tool_knows_of_none() -> None:
    """Some are in the catalogue as well, since their author could not know; none came from here."""
    for path in (ROOT / "verify").rglob("*.py"):
        words = path.read_text(encoding="utf-8")
        assert re.search(r"tests.outside|from outside\.|import outside\b", words) is None, path


def test_the_page_is_of_the_faults_that_are_there() -> None:
    """``python scripts/outside_page.py --run``, then ``--page``."""
    result = json.loads(script.RESULT.read_text(encoding="utf-8"))
    assert result["base"] == expected.base()
    # Those that were not judged yet the page names.
    assert {made["area"] for made in result["faults"].values()} == set(AREAS)
    for name, made in result["faults"].items():
        area, fault = FAULTS[name]
        assert (made["area"], made["digest"]) == (area, fault.digest), name
    assert script.PAGE.read_text(encoding="utf-8") == script.page()
    assert {made["verdict"] for made in result["right"].values()} == {"verified"}


@pytest.mark.parametrize("name", ["right", "logits-right"])
def test_the_models_that_they_alter_are_right(name: str) -> None:
    assert judged(port(name), checkpoint(), INPUTS).verdict is Verdict.VERIFIED


@pytest.mark.parametrize("name", JUDGED)
def test_a_few_are_found_where_they_are_and_named(name: str) -> None:
    _, fault = FAULTS[name]
    made = expected.summary(judged(port(name), checkpoint(), INPUTS))
    assert {"detected", "placed", "named"} <= set(expected.flags(fault, made))


def test_what_is_counted() -> None:
    _, fault = FAULTS["eps-of-bert"]
    cause = {"fault": "norm-eps-1e-12", "sentence": "has an epsilon", "note": "", "where": []}
    made = {"verdict": "refuted", "failed": {"architecture": ""}, "first_divergence": "h.0.ln_1"}

    def flags(*causes: dict[str, Any], **changed: Any) -> list[str]:
        return list(expected.flags(fault, {**made, "causes": causes, **changed}))

    other = {**cause, "fault": "head-bias", "sentence": "adds a vector"}
    assert flags(cause) == ["detected", "placed", "named"]
    assert flags(cause, other) == ["detected", "placed", "named", "also"]
    assert flags(other) == ["detected", "placed", "wrong"]
    assert flags() == ["detected", "placed"]
    assert flags(cause, first_divergence="embed") == ["detected", "named"]
    assert flags(cause, verdict="verified") == []
