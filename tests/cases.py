"""Which cases of large tables of tests are run where nothing says which.

Some tests have hundreds of cases, of which each judges a port. All of them take more than an hour
on two cores; so a run of everything takes a tenth of each large table, and the commit decides which
tenth. So it is with the tests that ``tests/long.txt`` lists, which take longest: they make one
table. A run of files or tests that are named takes all, and so does ``--cases all``.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

#: Of the cases of a large table one in so many is run.
PARTS = 10
#: A table of fewer cases is small.
LARGE = 6

ROOT = Path(__file__).resolve().parent.parent
#: The tests that take longest, without their cases: written by ``scripts/long_tests.py``.
LONG = ROOT / "tests" / "long.txt"


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases",
        choices=["all", *(str(part) for part in range(PARTS))],
        help="cases of large tables of tests: all (where files are named) or one part of "
        f"{PARTS} (otherwise; by default the commit decides which)",
    )


def part_of(config: pytest.Config) -> int | None:
    """The part that is run; None for all cases."""
    asked: str | None = config.getoption("--cases")
    if asked is None and config.args_source == pytest.Config.ArgsSource.ARGS:
        return None
    if asked is None:
        return _of_commit()
    return None if asked == "all" else int(asked)


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other parts of large tables, as deselected tests."""
    part = part_of(config)
    if part is None:
        return
    longest = set(LONG.read_text(encoding="utf-8").split())
    tables: dict[str, list[pytest.Item]] = defaultdict(list)
    long: list[pytest.Item] = []
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in longest:
            long.append(item)
        elif hasattr(item, "callspec"):
            tables[name].append(item)
    large = [long, *(table for table in tables.values() if len(table) >= LARGE)]
    left_out = {
        item for table in large for number, item in enumerate(table) if number % PARTS != part
    }
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _of_commit() -> int:
    """The first part where there is no commit."""
    git = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    return int(found[:8], 16) % PARTS
