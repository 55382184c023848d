"""False alarms over several long runs of correct ports, as one page.

    gpt-verify synth DIR --size 101,19,24,4,3 --seed 0
    gpt-verify power --correct --checkpoint DIR --seed 0 --json docs/results/power-correct-0.json
    …
    python scripts/correct_runs.py docs/results/power-correct-*.json docs/results/power.json

writes docs/results/power-correct.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "docs" / "results" / "power-correct.md"

PAGE = """# Correct ports, judged

Written by `scripts/correct_runs.py`; do not edit. {false} false alarms of the suite in {runs:,}
runs of {variants} correct variants (`verify/power/variants.py`). A false alarm is a correct port
that is not verified.

{each}

Runs of every law are `gpt-verify power --correct`; where the laws take turns, each has judged every
variant once over all seeds.

## Every variant

{table}
"""


def page(runs: dict[str, Any]) -> str:
    """The whole page, from the reports by the names of their files."""
    outcomes = [outcome for run in runs.values() for outcome in run["correct"]]
    names = list(dict.fromkeys(o["variant"] for o in outcomes))
    peers = list(outcomes[0]["peers"])
    each = [["checkpoint", "seeds", "laws", "runs", "false alarms", "report"]]
    for name, run in runs.items():
        sizes, plan = run["config"], run["plan"]
        alarms = sum(o["false_alarm"] for o in run["correct"])
        each.append(
            [
                ", ".join(f"{key} {value}" for key, value in sizes.items()),
                f"{plan['seed']} to {plan['seed'] + plan['seeds'] - 1}",
                "every one" if plan["correct"] or plan["every_law"] else "in turn",
                str(len(run["correct"])),
                str(alarms),
                f"[{name}]({name})",
            ]
        )
    table = [["variant", "runs", "false alarms", *(f"refused by {peer}" for peer in peers)]]
    for name in names:
        own = [o for o in outcomes if o["variant"] == name]
        refused = [str(sum(o["peers"].get(peer, False) for o in own)) for peer in peers]
        table.append([name, str(len(own)), str(sum(o["false_alarm"] for o in own)), *refused])
    return PAGE.format(
        false=sum(o["false_alarm"] for o in outcomes),
        runs=len(outcomes),
        variants=len(names),
        each=_markdown(each),
        table=_markdown(table),
    )


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def main() -> None:
    files = [Path(word) for word in sys.argv[1:]]
    if not files:
        sys.exit(__doc__)
    OUT.write_text(page({file.name: json.loads(file.read_text()) for file in files}))


if __name__ == "__main__":
    main()
