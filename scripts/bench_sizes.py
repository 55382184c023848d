"""The main job at OpenAI's four sizes: every law, beside the port alone.

    python scripts/bench_sizes.py                                       # all four, hours
    python scripts/bench_sizes.py --size 124M --checkpoint DIR --out X   # one; added to what X has

Checkpoints are synthetic, ``gpt-verify synth --size SIZE --seed 1 --format both``, unless
``--checkpoint`` names the directory that one was written to. For each size ``gpt-verify run``
judges transformers' model with the checkpoint's weights and with weights of its own under every
law; the port alone is loaded and called once. The page is written by ``--page docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import _OWN, measure, write_between

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize
from gpt_verify.judging.run import environment

SIZES = ("124M", "355M", "774M", "1558M")
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "sizes.json"


@contextmanager
def checkpoint_of(size: str, where: Path | None) -> Iterator[Path]:
    """The directory with ``openai`` and ``huggingface``."""
    if where is not None:
        yield where
        return
    with tempfile.TemporaryDirectory() as made:
        synthesize(Path(made) / "checkpoint", resolve_size(size), 1, format="both")
        yield Path(made) / "checkpoint"


def judged(openai: Path, port: str, length: int) -> dict[str, Any]:
    """One run of the command, and of the port alone."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [
            sys.executable,
            "-m",
            "gpt_verify",
            "run",
            "--quiet",
            "--checkpoint",
            str(openai),
        ]
        command += ["--port", port, "--length", str(length), "--json", str(report)]
        figures = measure(command)
        found = json.loads(report.read_text())
    own = [sys.executable, "-c", _OWN, str(openai), port, str(length)]
    alone = measure(own)
    statuses = [check["status"] for p in found["ports"] for check in p["checks"]]
    return {
        "verdict": found["verdict"],
        "checks": {status: statuses.count(status) for status in sorted(set(statuses))},
        "figures": asdict(figures),
        "alone": asdict(alone),
        # One process each, whose peak the kernel knows: the port alone has its own for a moment.
        "memory_ratio": figures.largest_mb / alone.largest_mb,
        "environment": environment(),
    }


def table(results: dict[str, Any]) -> list[str]:
    """A line a run."""
    lines = [
        "| shape | port | verdict | checks passed, failed, not examined | wall | CPU | peak | "
        "÷ port alone |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for key, run in sorted(results["runs"].items(), key=_order):
        size, port = key.split(" ")
        counts = [str(run["checks"].get(s, 0)) for s in ("passed", "failed", "not_examined")]
        figures = run["figures"]
        lines.append(
            f"| {size} | `{port}` | {run['verdict']} | {', '.join(counts)} | "
            f"{figures['wall_s'] / 60:.1f} min | {figures['cpu_s'] / 60:.1f} min | "
            f"{figures['peak_mb']:,.0f} MB | {run['memory_ratio']:.2f} |"
        )
    return lines


def oldest(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The environment of the run that was made longest ago: the figures are as old as that."""

    def age(environment: dict[str, Any]) -> tuple[int, int]:
        made = environment.get("made_with", {})
        return made.get("numerics", 0), len(made.get("laws", ()))

    return min((run["environment"] for run in runs), key=age)


def _order(item: tuple[str, Any]) -> tuple[int, str]:
    size, port = item[0].split(" ")
    return (SIZES.index(size) if size in SIZES else len(SIZES), port)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", action="append", help=f"of {', '.join(SIZES)}; default: all")
    parser.add_argument("--checkpoint", type=Path, help="where the synthetic one of that size is")
    parser.add_argument("--port", action="append", choices=("converted", "own"))
    parser.add_argument("--length", type=int, default=128, help="tokens")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="JSON; runs of the same size and port are replaced",
    )
    parser.add_argument("--page", type=Path, help="the page that shows the table")
    arguments = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    results: dict[str, Any] = {"length": arguments.length, "runs": {}}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text())
    for size in () if arguments.page and not arguments.size else arguments.size or SIZES:
        with checkpoint_of(size, arguments.checkpoint) as where:
            names = {
                "converted": ("huggingface-eager", "huggingface-eager"),
                "own": ("huggingface-sdpa=DIR", f"huggingface-sdpa={where / 'huggingface'}"),
            }
            for which in arguments.port or names:
                name, port = names[which]
                run = judged(where / "openai", port, arguments.length)
                results["runs"][f"{size} {name}"] = run
                print(*table({"runs": {f"{size} {name}": run}})[2:], sep="\n", flush=True)
                results["environment"] = oldest(results["runs"].values())
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.page:
        write_between(arguments.page, "sizes", table(results))


if __name__ == "__main__":
    main()
