"""False alarms over several long runs of correct ports, as one page.

    python scripts/correct_runs.py --run          # makes three of them first, 38 variants each
    python scripts/correct_runs.py --run --runs 1 --seeds 1 --size 124M --out /tmp/here
    python scripts/instructions.py avx2 -- python scripts/correct_runs.py --run
    python scripts/correct_runs.py docs/results/power-correct-*.json docs/results/power.json

The first three run ``gpt-verify power --correct`` on synthetic checkpoints, each from another seed
on; the last takes the reports of such runs. All write power-correct.md beside the reports, or
power-correct-avx2.md, with the processor and the instructions that each was made on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from figures import ROOT, marked
from instructions import NAME, in_force

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize
from gpt_verify.judging.made_with import made_with

OUT = ROOT / "docs" / "results"
#: Tiny, and no two dimensions are equal.
SIZE = "101,19,24,4,3"

PAGE = """# Correct ports, judged

Written by `scripts/correct_runs.py`; do not edit. {false} false alarms of the suite in {runs:,}
runs of {variants} correct variants (`verify/power/variants.py`). A false alarm is a correct port
that is not verified.

<!-- figures: {names} -->

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
    baselines = list(outcomes[0]["peers"])
    each = [["checkpoint", "seeds", "laws", "processor", "runs", "false alarms", "report"]]
    for name, run in runs.items():
        sizes, plan = run["config"], run["plan"]
        alarms = sum(o["false_alarm"] for o in run["correct"])
        each.append(
            [
                ", ".join(f"{key} {value}" for key, value in sizes.items()),
                f"{plan['seed']} to {plan['seed'] + plan['seeds'] - 1}",
                "every one" if plan["correct"] or plan["every_law"] else "in turn",
                processor_of(run),
                str(len(run["correct"])),
                str(alarms),
                f"[{name}]({name})",
            ]
        )
    table = [
        ["variant", "runs", "false alarms", *(f"refused by {baseline}" for baseline in baselines)]
    ]
    for name in names:
        own = [o for o in outcomes if o["variant"] == name]
        refused = [str(sum(o["peers"].get(baseline, False) for o in own)) for baseline in baselines]
        table.append([name, str(len(own)), str(sum(o["false_alarm"] for o in own)), *refused])
    return PAGE.format(
        false=sum(o["false_alarm"] for o in outcomes),
        runs=len(outcomes),
        variants=len(names),
        names=" ".join(runs),
        each=_markdown(each),
        table=_markdown(table),
    )


def processor_of(run: Mapping[str, Any]) -> str:
    """Model, and the instructions of OpenBLAS and of torch; what is not recorded is said so."""
    known = run.get("instructions") or run["environment"].get("processor")
    if known is None:
        return "not recorded"
    parts = [known["model"]]
    parts += [f"{p['library']} {p['architecture']}" for p in known["blas"] if p["architecture"]]
    if "torch" in known:
        parts.append(f"torch {known['torch']['capability']}")
        parts.append(f"{known['torch']['threads']} threads")
    return ", ".join(dict.fromkeys(parts))


def stem() -> str:
    """The stem of the files' names: runs under other instructions stand beside the others."""
    name = os.environ.get(NAME)
    return f"power-correct-{name}" if name else "power-correct"


def made(size: str, first: int, seeds: int, runs: int, out: Path) -> Iterator[Path]:
    """Run every law on every correct variant, each time with a checkpoint and seeds of their own.

    Args:
        size: of the checkpoint, as ``synth`` names it.
        first: the first seed.
        seeds: how many a run takes.
        runs: how many there are.
        out: the directory of the results.
    """
    known = in_force()
    for number in range(runs):
        path, seed = out / f"{stem()}-{number}.json", first + number * seeds
        with tempfile.TemporaryDirectory() as where:
            checkpoint = Path(where) / "checkpoint"
            synthesize(checkpoint, resolve_size(size), seed=number, format="openai")
            words = ["power", "--correct", "--quiet", "--checkpoint", str(checkpoint)]
            words += ["--seed", str(seed), "--seeds", str(seeds), "--json", str(path)]
            command = [sys.executable, "-m", "gpt_verify", *words]
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        if done.returncode > 1 or not path.exists():
            sys.exit(f"gpt-verify power ended with {done.returncode}")
        report = json.loads(path.read_text(encoding="utf-8"))
        # The runs are in processes of their own, which this one's libraries say nothing of.
        path.write_text(json.dumps({**report, "instructions": known}, indent=1) + "\n")
        yield path


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="*", type=Path, help="of gpt-verify power --json")
    parser.add_argument("--run", action="store_true", help="make them first")
    parser.add_argument("--size", default=SIZE, help="124M … 1558M or V,P,D,H,L")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=10, help="of each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the directory; that of the reports")
    arguments = parser.parse_args()
    if not arguments.reports and not arguments.run:
        parser.error("either reports, or --run")
    files: list[Path] = list(arguments.reports)
    out = arguments.out or (files[0].parent if files else OUT)
    out.mkdir(parents=True, exist_ok=True)
    if arguments.run:
        files = [
            *made(arguments.size, arguments.seed, arguments.seeds, arguments.runs, out),
            *files,
        ]
    reports = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    text = page(reports)
    if out.resolve() == OUT:
        text = marked(ROOT, text, made_with())
    written = out / f"{stem()}.md"
    written.write_text(text, encoding="utf-8")
    alarms = sum(o["false_alarm"] for report in reports.values() for o in report["correct"])
    print(f"{written}: {alarms} false alarms")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
