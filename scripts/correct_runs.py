"""False alarms in runs of correct ports on random models, as one page.

    python scripts/correct_runs.py --run                  # 54 models, every variant on each: hours
    python scripts/correct_runs.py --run --models 10      # the first ten of them
    python scripts/correct_runs.py --run --size 124M --models 1 --out /tmp/here
    python scripts/correct_runs.py --run --families       # four models of each family
    python scripts/instructions.py avx2 -- python scripts/correct_runs.py --run
    python scripts/correct_runs.py                        # the page alone

Each model is a synthetic checkpoint of sizes of its own, some of them degenerate (one token, width
1, a context of one, one head for each channel); on each, ``gpt-verify power --correct`` judges
every correct variant under every law: implementations, layouts, formats. A model whose runs the
result has already, made with the laws of today, is not run again. The result and the page are
correct-runs.json and .md, or correct-runs-avx2.json and .md, with the processor and the
instructions that they were made on. Of the families they are correct-runs-families.json and .md
(``family_runs.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import family_runs
from figures import ROOT, marked
from instructions import NAME, in_force

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize
from gpt_verify.judging.made_with import made_with

OUT = ROOT / "docs" / "results"
#: V, P, D, H, L of the models that come first. The first has no two sizes that are equal; the
#: others are degenerate, each in one way or two.
FIRST = (
    "101,19,24,4,3",
    "1,19,24,4,2",
    "2,5,8,2,1",
    "101,1,24,4,2",
    "101,2,24,4,2",
    "67,19,1,1,2",
    "67,19,2,2,2",
    "67,19,2,1,2",
    "67,19,12,12,2",
    "24,24,24,1,3",
)
#: What is kept of a report of ``gpt-verify power``.
KEPT = ("config", "plan", "seconds", "environment", "correct")

PAGE = """# Correct ports, judged

Written by `scripts/correct_runs.py`; do not edit. {false} false alarms of the suite in {runs:,}
runs of {variants} correct variants (`verify/power/variants.py`) on {models} models, under every
law. A false alarm is a correct port that is not verified.

<!-- figures: {name} -->

{processor}. Each model has weights and inputs of its own; sizes are drawn, but for {first} that
come first.

{models_table}

## Every variant

{variants_table}
"""


def sizes(count: int) -> Iterator[str]:
    """The sizes of so many models, the same each time: those that come first, and drawn ones."""
    for number in range(count):
        if number < len(FIRST):
            yield FIRST[number]
            continue
        rng = random.Random(number)
        heads, width = rng.choice((1, 2, 3, 4, 6)), rng.randint(1, 12)
        numbers = rng.randint(2, 300), rng.randint(2, 48), heads * width, heads, rng.randint(1, 4)
        yield ",".join(map(str, numbers))


def made(size: str, seed: int) -> dict[str, Any]:
    """Every law on every correct variant, on one checkpoint and one seed."""
    with tempfile.TemporaryDirectory() as where:
        checkpoint, report = Path(where) / "checkpoint", Path(where) / "report.json"
        synthesize(checkpoint, resolve_size(size), seed=seed, format="openai")
        words = ["power", "--correct", "--quiet", "--checkpoint", str(checkpoint)]
        words += ["--seed", str(seed), "--seeds", "1", "--json", str(report)]
        command = [sys.executable, "-m", "gpt_verify", *words]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        if done.returncode > 1 or not report.exists():
            sys.exit(f"gpt-verify power ended with {done.returncode} on a model of {size}")
        found = json.loads(report.read_text(encoding="utf-8"))
    return {"size": size, **{key: found[key] for key in KEPT}}


def of_today(report: Mapping[str, Any]) -> bool:
    """Whether a report was made with the laws and the numerics of today."""
    then, now = report["environment"].get("made_with", {}), made_with()
    return all(then.get(key) == now[key] for key in ("laws", "numerics"))


def alarms(reports: Sequence[Mapping[str, Any]]) -> int:
    return sum(run["false_alarm"] for report in reports for run in report["correct"])


def page(result: Mapping[str, Any], name: str) -> str:
    """The whole page, from the result in the file of that name."""
    reports = result["reports"]
    runs = [run for report in reports for run in report["correct"]]
    variants, baselines = list(dict.fromkeys(r["variant"] for r in runs)), list(runs[0]["peers"])
    models = [["n_vocab, n_ctx, n_embd, n_head, n_layer", "runs", "false alarms"]]
    for report in reports:
        models.append([report["size"], str(len(report["correct"])), str(alarms([report]))])
    table = [["variant", "runs", "false alarms", *(f"refused by {name}" for name in baselines)]]
    for variant in variants:
        own = [run for run in runs if run["variant"] == variant]
        refused = [str(sum(run["peers"].get(name, False) for run in own)) for name in baselines]
        false = sum(run["false_alarm"] for run in own)
        table.append([variant, str(len(own)), str(false), *refused])
    return PAGE.format(
        false=alarms(reports),
        runs=len(runs),
        variants=len(variants),
        models=len(reports),
        name=name,
        processor=processor_of(result),
        first=len(FIRST),
        models_table=_markdown(models),
        variants_table=_markdown(table),
    )


def processor_of(result: Mapping[str, Any]) -> str:
    """Model, and the instructions of OpenBLAS and of torch."""
    known = result["instructions"]
    parts = [known["model"]]
    parts += [f"{p['library']} {p['architecture']}" for p in known["blas"] if p["architecture"]]
    if "torch" in known:
        parts.append(f"torch {known['torch']['capability']}")
        parts.append(f"{known['torch']['threads']} threads")
    return ", ".join(dict.fromkeys(parts))


def stem() -> str:
    """The stem of the files' names: runs under other instructions stand beside the others."""
    name = os.environ.get(NAME)
    return f"correct-runs-{name}" if name else "correct-runs"


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="store_true", help="make what the result lacks first")
    parser.add_argument("--models", type=int, help="54; of each family 4")
    parser.add_argument("--families", action="store_true", help="of families, not of GPT-2")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no model after these")
    parser.add_argument("--size", help="of every model: 124M … 1558M or V,P,D,H,L")
    parser.add_argument("--out", type=Path, default=OUT, help="the directory of the results")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.families:
        if arguments.run:
            family_runs.run(arguments.out, arguments.models or 4, arguments.seconds)
        false = family_runs.written(arguments.out, arguments.out.resolve() == OUT)
        print(f"{arguments.out / family_runs.NAME}.md: {false} false alarms")
        return 1 if false else 0
    path = arguments.out / f"{stem()}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"reports": []}
    if arguments.run:
        result["reports"] = [report for report in result["reports"] if of_today(report)]
        # The runs are in processes of their own, which this one's libraries say nothing of.
        result["instructions"] = in_force()
        known = {(report["size"], report["plan"]["seed"]) for report in result["reports"]}
        for seed, drawn in enumerate(sizes(arguments.models or 54)):
            size = arguments.size or drawn
            if (size, seed) not in known:
                result["reports"].append(made(size, seed))
                result["environment"] = result["reports"][-1]["environment"]
                path.write_text(json.dumps(result, indent=1) + "\n")
                print(f"{size}: {alarms(result['reports'][-1:])} false alarms", flush=True)
    text = page(result, path.name)
    if arguments.out.resolve() == OUT:
        text = marked(ROOT, text, made_with())
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    false = alarms(result["reports"])
    print(f"{path.with_suffix('.md')}: {false} false alarms")
    return 1 if false else 0


if __name__ == "__main__":
    sys.exit(main())
