"""The pages in docs/ are what the command writes, and the command writes them again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.run import report_on
from gpt_verify.judging.selection import is_default
from gpt_verify.report.claims import markdown

pytestmark = pytest.mark.claims

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: Page → the claims that were asked for.
PAGES = {"claims.md": [], "tied-embeddings.md": ["tie"]}
pages = pytest.mark.parametrize("page", PAGES)


@pages
def test_the_page_is_not_stale(page: str, case: Case, checkpoint: Checkpoint) -> None:
    """The second time that these bytes are made: the first time is the page itself."""
    if not is_default(checkpoint.path):
        pytest.skip("the page is about the default checkpoint")
    report = report_on(case, PAGES[page])
    if report.unjudged:
        pytest.skip(f"not judged here: {', '.join(d.claim.id for d in report.unjudged)}")
    command = f"{report.repeat} --markdown docs/{page}"
    assert markdown.render(report) == (DOCS / page).read_text(encoding="utf-8"), f"stale: {command}"


@pages
def test_the_page_has_no_paths_of_this_machine(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert str(DOCS.parent) not in text
    assert "default checkpoint" in text
