"""What came of damaged checkpoints and hostile ports, as one page.

python scripts/hostile_files.py --count 1000 --json docs/results/hostile-files.json
python scripts/hostile_ports.py --json docs/results/hostile-ports.json
python scripts/hostile_page.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from figures import RESULTS, ROOT, marked

from gpt_verify.judging.made_with import made_with

PAGE = """# Damaged checkpoints and hostile ports

Written by `scripts/hostile_page.py`; do not edit.

`scripts/hostile_files.py` damages one file of a checkpoint and runs `gpt-verify run` on it. Each of
them must end within a minute, with status 2 and one line that says what is wrong, or be judged
where the damage says nothing (one bit of a weight in a format without checksums). It takes no more
memory than a sound one and twice the size of its files, and leaves nothing behind.

<!-- figures: hostile-files.json -->

{files}

`scripts/hostile_ports.py` does the same to ports that are programs or servers. Each answers a few
questions, and then hangs, dies, writes without end, or leaves processes behind; an answer may take
{timeout} seconds.

<!-- figures: hostile-ports.json -->

{ports}
"""


def table(outcomes: Iterable[Mapping[str, Any]], kind: str) -> str:
    """A line for each kind, and one for all."""
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[f"{outcome['form']}: {outcome[kind]}" if kind == "kind" else outcome[kind]].append(
            outcome
        )
    every = [outcome for some in by_kind.values() for outcome in some]
    lines = ["| | runs | status 2 | status 1 | status 0 | otherwise | slowest |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, some in [*sorted(by_kind.items()), ("**all**", every)]:
        right = [o["status"] for o in some if not o["wrong"]]
        counts = [right.count(status) for status in (2, 1, 0)]
        slowest = max(o["seconds"] for o in some)
        cells = [name, len(some), *counts, len(some) - len(right), f"{slowest:.1f} s"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    files, ports = (
        json.loads((ROOT / RESULTS / f"hostile-{name}.json").read_text(encoding="utf-8"))
        for name in ("files", "ports")
    )
    text = PAGE.format(
        files=table(files["outcomes"], "damage"),
        ports=table(ports["outcomes"], "kind"),
        timeout=ports["timeout_s"],
    )
    page = ROOT / "docs" / "hostile.md"
    page.write_text(marked(ROOT, text, made_with()), encoding="utf-8")


if __name__ == "__main__":
    main()
