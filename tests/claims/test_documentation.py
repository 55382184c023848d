"""docs/claims.md is what the command writes, and the command writes it again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.run import report_on
from gpt_verify.judging.selection import is_default
from gpt_verify.report.claims import markdown

pytestmark = pytest.mark.claims

PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"


def test_the_page_is_not_stale(case: Case, checkpoint: Checkpoint) -> None:
    """The second time that these bytes are made: the first time is the page itself."""
    if not is_default(checkpoint.path):
        pytest.skip("the page is about the default checkpoint")
    report = report_on(case)
    if report.unjudged:
        pytest.skip(f"not judged here: {', '.join(d.claim.id for d in report.unjudged)}")
    command = "gpt-verify claims --markdown docs/claims.md"
    assert markdown.render(report) == PAGE.read_text(encoding="utf-8"), f"stale: {command}"


def test_the_page_has_no_paths_of_this_machine() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert str(PAGE.parents[1]) not in text
    assert "default checkpoint" in text
