"""What the documents say is there, is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpt_verify.laws.table import CHECKS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_law_is_described() -> None:
    said = set(re.findall(r"^\| `([a-z._…]+)` \|", (ROOT / "docs/laws.md").read_text(), re.M))
    families = {name.removesuffix("…") for name in said if name.endswith("…")}
    for law in CHECKS:
        assert law.id in said or any(law.id.startswith(f) for f in families), law.id


def test_no_other_law_is_described() -> None:
    text = (ROOT / "docs/laws.md").read_text().split("## Tying")[1]
    ids = {law.id for law in CHECKS}
    for name in re.findall(r"^\| `([a-z._…]+)` \|", text, re.M):
        if name.endswith("…"):
            assert any(known.startswith(name.removesuffix("…")) for known in ids), name
        else:
            assert name in ids, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Those within the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
