"""What the documents say is there, is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gpt_verify.laws.table import PARTS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import laws_page  # noqa: E402  # after the line above

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_the_laws_is_made_from_the_laws() -> None:
    text = laws_page.PAGE.read_text()
    assert laws_page.written(text) == text
    assert all(f"| `{part.id}` |" in text for part in PARTS)


def test_a_law_that_the_page_does_not_have_is_seen() -> None:
    text = laws_page.PAGE.read_text()
    with pytest.raises(SystemExit):
        laws_page.written(text.replace("<!-- law: tying -->\n", ""))
    assert laws_page.written(text.replace("bit for bit", "nearly")) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Those within the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
