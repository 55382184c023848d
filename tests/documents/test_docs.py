"""What the documents say is there, is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import gpt_verify as gv
from gpt_verify.laws.table import PARTS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import laws_page  # noqa: E402  # after the line above

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_the_page_of_the_laws_is_made_from_the_laws() -> None:
    text = laws_page.PAGE.read_text()
    assert laws_page.written(text) == text
    assert all(f"| `{part.id}` |" in text for part in PARTS)


def test_a_law_that_the_page_does_not_have_is_seen() -> None:
    text = laws_page.PAGE.read_text()
    with pytest.raises(SystemExit):
        laws_page.written(text.replace("<!-- law: tying -->\n", ""))
    assert laws_page.written(text.replace("bit for bit", "nearly", 1)) == text


EXAMPLES = sorted(p for p in (ROOT / "examples").rglob("*") if p.suffix in (".py", ".ipynb"))


def private(text: str) -> set[str]:
    """What a text imports from this package, or calls by its name, that is not public."""
    named = {*re.findall(r"\b(?:gpt_verify|gv)\.([a-zA-Z_]\w*)", text)}
    for names in re.findall(r"from gpt_verify import (\([^)]*\)|[^\n\\]*)", text):
        named |= {name.split(" as ")[0].strip() for name in names.strip("()").split(",")}
    return {name for name in named if name not in gv.__all__}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "CONTRIBUTING.md"] + EXAMPLES, ids=lambda p: p.name
)
def test_nothing_but_the_public_names_is_shown_to_users(page: Path) -> None:
    assert private(page.read_text(encoding="utf-8")) == set()


def test_what_is_not_public_is_seen() -> None:
    assert private("from gpt_verify.port import Port") == {"port"}
    assert private("import gpt_verify.laws as laws") == {"laws"}
    assert private("from gpt_verify import Port, sites as s\n") == {"sites"}
    assert private("`gv.run(x)`, `gpt_verify.findings.Status`") == {"findings"}
    assert private("gv.run(model); gpt_verify.compare(a, b)\n") == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Those within the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
