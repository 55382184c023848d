"""Lists the lines and branches that no test runs, with what stands there, room by room.

    python -m coverage json -o found.json
    python scripts/unrun.py found.json                    # every room
    python scripts/unrun.py found.json lens report        # these alone
    python scripts/unrun.py found.json --numbers          # the table alone

``tox -e coverage`` ends with it. A line in this list is not wrong. It is a line of which no test
would say so if it were: somebody looks at it, and writes a test, takes the line away, or leaves it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class File:
    """One file, as coverage measured it.

    Attributes:
        path: in the checkout.
        lines: how many statements it has.
        unrun: the numbers of the lines that never ran.
        untaken: ``(from, to)``: branches that were never taken, of lines that ran; a negative
            target is the end of the function.
        branches: how many it has.
    """

    path: Path
    lines: int
    unrun: tuple[int, ...]
    untaken: tuple[tuple[int, int], ...]
    branches: int

    @classmethod
    def of(cls, name: str, found: dict[str, Any]) -> File:
        never = set(found["missing_lines"])
        untaken = ((a, b) for a, b in found.get("missing_branches", ()) if a not in never)
        summary = found["summary"]
        return cls(
            Path(name),
            summary["num_statements"],
            tuple(sorted(never)),
            tuple(sorted(untaken)),
            summary.get("num_branches", 0),
        )

    @property
    def room(self) -> str:
        """``lens`` of ``verify/lens/stream.py``; ``reference`` of what lies there."""
        parts = self.path.with_suffix("").parts
        inner = parts[1:] if parts[0] in ("verify", "gpt_verify") else parts
        return inner[0] if len(inner) else parts[0]


def read(path: Path) -> list[File]:
    """The files of a coverage report in JSON.

    Raises:
        SystemExit: it has no branches, which half of this is about.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not found["meta"]["branch_coverage"]:
        raise SystemExit(f"{path}: measured without branches")
    # What lies elsewhere is a copy of the checkout, which a test has made and run.
    here = {name: own for name, own in found["files"].items() if not Path(name).is_absolute()}
    return [File.of(name, own) for name, own in sorted(here.items())]


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers, as their first and last."""
    start = previous = None
    for number in numbers:
        if previous is None or start is None:
            start = number
        elif number > previous + 1:
            yield start, previous
            start = number
        previous = number
    if start is not None and previous is not None:
        yield start, previous


def listed(file: File, source: Sequence[str]) -> Iterator[str]:
    """What never ran of a file, with the text of its lines."""
    if not file.unrun and not file.untaken:
        return
    yield f"{file.path}"
    for first, last in runs(file.unrun):
        for number in range(first, last + 1):
            yield f"  {number:>4}  {source[number - 1].rstrip()}"
    for origin, target in file.untaken:
        where = "the end of the function" if target < 0 else f"line {target}"
        yield f"  {origin:>4}  never to {where}: {source[origin - 1].strip()}"


def numbers(files: Sequence[File]) -> Iterator[str]:
    """A row for each room, that with the most lines that never ran first."""
    rooms: dict[str, list[File]] = {}
    for file in files:
        rooms.setdefault(file.room, []).append(file)
    yield f"{'room':<14}{'lines':>8}{'never run':>11}{'branches':>10}{'never taken':>13}"
    counted = {
        room: [
            sum(f.lines for f in own),
            sum(len(f.unrun) for f in own),
            sum(f.branches for f in own),
            sum(len(f.untaken) for f in own),
        ]
        for room, own in rooms.items()
    }
    for room, (lines, unrun, branches, untaken) in sorted(
        counted.items(), key=lambda item: (-item[1][1], item[0])
    ):
        yield f"{room:<14}{lines:>8}{unrun:>11}{branches:>10}{untaken:>13}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("found", type=Path, help="of python -m coverage json")
    parser.add_argument("rooms", nargs="*", help="of verify/, or reference; default: all")
    parser.add_argument("--numbers", action="store_true", help="the table alone")
    asked = parser.parse_args(words)
    files = read(asked.found)
    known = sorted({file.room for file in files})
    if unknown := sorted(set(asked.rooms) - {*known}):
        parser.error(f"no room {', '.join(unknown)}: there are {', '.join(known)}")
    shown = [file for file in files if not asked.rooms or file.room in asked.rooms]
    if not asked.numbers:
        for file in shown:
            source = (ROOT / file.path).read_text(encoding="utf-8").splitlines()
            print("\n".join([*listed(file, source), ""]), end="")
            if file.unrun or file.untaken:
                print()
    print("\n".join(numbers(shown)))


if __name__ == "__main__":
    main()
