"""What a default run costs beside one of an older commit: CPU time, in turns, as a ratio.

    python scripts/bench_growth.py --base 63d0864~1 --json docs/results/growth.json
    python scripts/bench_growth.py --page docs/benchmarks.md       # runs nothing

Both run ``gpt-verify run``, with every built-in port, on the default checkpoint, in the environment
of this process: the older commit from a checkout of its own, which is removed afterwards. CPU time
is that of the command and of every process that it began, so that a busy machine makes little of a
difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import Any

from bench import write_between
from figures import RESULTS, ROOT

from gpt_verify.judging.run import environment

RESULT = ROOT / RESULTS / "growth.json"


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "base"
        subprocess.run([*git, "add", "--quiet", "--detach", str(where), commit], check=True)
        try:
            yield where
        finally:
            subprocess.run([*git, "remove", "--force", str(where)], check=True)


def cpu_seconds(source: Path) -> tuple[float, str]:
    """What one run of the code in that folder takes, and what it says in the end."""
    before = getrusage(RUSAGE_CHILDREN)
    made = subprocess.run(
        [sys.executable, "-m", "gpt_verify", "run"],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    after = getrusage(RUSAGE_CHILDREN)
    if made.returncode:
        raise SystemExit(f"status {made.returncode}: {made.stdout[-500:]}{made.stderr[-500:]}")
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return round(spent, 1), made.stdout.splitlines()[-1]


def measured(base: str, rounds: int) -> dict[str, Any]:
    """Both, in turns, and the median of the ratios."""
    name = ["git", "-C", str(ROOT), "rev-parse", "--short", base]
    commit = subprocess.run(name, capture_output=True, text=True, check=True).stdout.strip()
    runs: list[dict[str, float]] = []
    with checked_out(base) as older:
        for _ in range(rounds):
            pair = {"base": cpu_seconds(older)[0], "now": cpu_seconds(ROOT)[0]}
            print(pair, file=sys.stderr, flush=True)
            runs.append(pair)
    ratio = median(run["now"] / run["base"] for run in runs)
    return {"base": commit, "runs": runs, "ratio": round(ratio, 3), "environment": environment()}


def lines(result: dict[str, Any]) -> list[str]:
    """For the page."""
    older, now = (median(run[key] for run in result["runs"]) for key in ("base", "now"))
    return [
        "| commit | CPU seconds (median) | ratio |",
        "|---|--:|--:|",
        f"| `{result['base']}` | {older:.0f} | 1 |",
        f"| the one that this was measured at | {now:.0f} | {result['ratio']:.2f} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", help="a commit, as git names it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, help="runs nothing: shows what was committed there")
    arguments = parser.parse_args()
    if arguments.base:
        found = measured(arguments.base, arguments.rounds)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(*lines(found), sep="\n")
    if arguments.page:
        result = json.loads(RESULT.read_text(encoding="utf-8"))
        write_between(arguments.page, "growth", lines(result))


if __name__ == "__main__":
    main()
