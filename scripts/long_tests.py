"""The list of the tests that take longest: ``tests/long.txt``, of which a run takes a part.

    .venv/bin/tox -e tests -- --cases all --junitxml=times.xml
    python scripts/long_tests.py times.xml

They are those of which one case takes longest, as many as take most of the time of the whole run
together; so the list does not hang on the speed of the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
#: The share of the time of all tests that the listed ones take.
SHARE = 0.75


def longest(times: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """The tests, the one with the longest case first.

    Args:
        times: test → seconds of each of its cases.
    """
    left = SHARE * sum(map(sum, times.values()))
    for name in sorted(times, key=lambda name: -mean(times[name])):
        if left <= 0:
            return
        left -= sum(times[name])
        yield name


def times_of(junit: Path) -> dict[str, list[float]]:
    """Test, as pytest names it, without its case → seconds of each case."""
    found: dict[str, list[float]] = defaultdict(list)
    for case in ElementTree.parse(junit).iter("testcase"):
        parts = case.get("classname", "").split(".")
        for end in range(len(parts), 0, -1):
            file = Path("/".join(parts[:end]) + ".py")
            if (ROOT / file).is_file():
                name = case.get("name", "").partition("[")[0]
                test = "::".join([file.as_posix(), *parts[end:], name])
                found[test].append(float(case.get("time", 0)))
                break
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("junit", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "long.txt")
    arguments = parser.parse_args(argv)
    found = sorted(longest(times_of(arguments.junit)))
    arguments.out.write_text("".join(f"{name}\n" for name in found), encoding="utf-8")
    print(f"{arguments.out}: {len(found)} tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
