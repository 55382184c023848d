"""The tables of docs/laws.md, from the folders of the laws.

    python scripts/laws_page.py           # exit status 1 where the page is another
    python scripts/laws_page.py --write

A table stands below its law's mark, ``<!-- law: tying -->``; what else the page says is written by
hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt_verify.laws.law import Law, Part  # noqa: E402  # of this repository
from gpt_verify.laws.table import folders  # noqa: E402  # of this repository

PAGE = ROOT / "docs" / "laws.md"
#: A mark, and the table below it.
MARKED = re.compile(r"^<!-- law: (\w+) -->\n(?:\|.*\n)*", re.MULTILINE)


def rows(law: Law) -> Iterator[str]:
    yield "| id | what must hold | needs |"
    yield "|---|---|---|"
    for part in law.parts:
        yield f"| `{part.id}` | {part.holds} | {needs(part)} |"


def needs(part: Part) -> str:
    """The members of ``Port`` that the law asks for."""
    words = [f"`{need.name}`" for need in part.needs]
    if part.writes:
        words = [f"{word} with `write`" if word == "`parameters`" else word for word in words]
    return ", ".join(words)


def written(text: str) -> str:
    """The page with the tables of today.

    Raises:
        SystemExit: a law has no mark, or a mark no law.
    """
    laws = dict(folders())
    if sorted(MARKED.findall(text)) != sorted(laws):
        raise SystemExit(f"{PAGE.name}: marks of {sorted(MARKED.findall(text))}")
    table = {name: "".join(f"{line}\n" for line in rows(law)) for name, law in laws.items()}
    return MARKED.sub(lambda m: f"<!-- law: {m[1]} -->\n{table[m[1]]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables where they belong")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if arguments.write:
        PAGE.write_text(written(text), encoding="utf-8")
    elif written(text) != text:
        raise SystemExit("docs/laws.md: other tables than the laws say; see scripts/laws_page.py")


if __name__ == "__main__":
    main()
