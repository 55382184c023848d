"""Public bug reports as pairs of ports: the page is theirs, and a few of them are judged."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from models import INPUTS, checkpoint, judged

from gpt_verify.findings import Verdict

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import expected  # noqa: E402  # of the scripts, not installed
import reports_page  # noqa: E402  # of the scripts, not installed

LOG = reports_page.LOG
#: Each of its own kind: a site, the cache alone, the loss alone.
JUDGED = ("qkv-by-head", "cached-positions-from-zero", "labels-not-shifted")


def test_each_has_a_thread_and_says_what_must_be_said() -> None:
    assert len(LOG) >= 10
    for case in LOG.values():
        assert case.links
        for thread in case.links:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+/(issues|pull)/\d+", thread), thread
        assert re.search(case.words, "") is None
        assert expected.chance(case.words) < 1 / 2, case.name


def test_the_page_is_of_the_reports_that_are_there() -> None:
    """``python scripts/reports_page.py --run``, then ``--page``."""
    result = json.loads(reports_page.RESULT.read_text(encoding="utf-8"))
    assert result["base"] == expected.base()
    assert len(result["reports"]) >= 10
    for name, made in result["reports"].items():
        assert made["digest"] == LOG[name].digest, name
    assert reports_page.PAGE.read_text(encoding="utf-8") == reports_page.page()


@pytest.mark.parametrize("name", JUDGED)
def test_a_few_pairs(name: str) -> None:
    right, wrong = (f"{reports_page.PORTS}:{which}__{name}" for which in ("right", "wrong"))
    assert judged(right, checkpoint(), INPUTS).verdict is Verdict.VERIFIED
    made = expected.summary(judged(wrong, checkpoint(), INPUTS))
    assert {"detected", "placed", "named"} <= set(expected.flags(LOG[name], made))
