"""The tables of docs/checkpoints.md, from the layouts that the tests open.

    python scripts/checkpoints_page.py           # exit status 1 where the page is another
    python scripts/checkpoints_page.py --write

A table stands below its mark, ``<!-- layouts: opened, OpenAI -->``; what else the page says is
written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from file_layouts import TABLES, Layout  # noqa: E402  # of this repository

PAGE = ROOT / "docs" / "checkpoints.md"
MARKED = re.compile(r"^<!-- layouts: ([\w, ]+) -->\n(?:\|.*\n)*", re.MULTILINE)


def rows(table: Sequence[Layout]) -> Iterator[str]:
    yield f"| files | {'remark in the report' if table[0].opened else 'error message'} |"
    yield "|---|---|"
    for layout in table:
        said = layout.said.replace("|", "\\|").replace("\n", "<br>")
        yield f"| {layout.what} | {said or '–'} |"


def written(text: str) -> str:
    """The page with the tables of today.

    Raises:
        SystemExit: a table has no mark, or a mark no table.
    """
    if sorted(MARKED.findall(text)) != sorted(TABLES):
        raise SystemExit(f"{PAGE.name}: marks of {sorted(MARKED.findall(text))}")
    made = {name: "".join(f"{row}\n" for row in rows(table)) for name, table in TABLES.items()}
    return MARKED.sub(lambda m: f"<!-- layouts: {m[1]} -->\n{made[m[1]]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables where they belong")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    new = written(text)
    if arguments.write:
        PAGE.write_text(new, encoding="utf-8")
    elif new != text:
        raise SystemExit(f"{PAGE.name}: not the tables of today; {Path(__file__).name} --write")


if __name__ == "__main__":
    main()
