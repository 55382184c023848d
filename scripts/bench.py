"""Time and memory of a full verification, as ratios to the scripts that people write by hand.

    python scripts/bench.py --json docs/results/bench-124M.json          # of OpenAI's 124M shape
    python scripts/bench.py --family qwen3 --size 0.6B --json docs/results/bench-qwen3-0.6B.json
    python scripts/bench.py --page docs/benchmarks.md                    # the table, from both

What is measured are the commands that the README gives, with every law, in turns with a script that
loads both models and compares their logits (``bench_naive.py``, ``bench_naive_family.py``). All
figures are of whole process trees; only ratios of one run mean anything on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize, synthesize_family
from gpt_verify.judging.run import environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results"
#: Of the two comparisons by hand: tokens. The longer one is a whole context of GPT-2.
SHORT, LONG = 128, 1024
#: The results in the table.
SHOWN = ("bench-124M.json", "bench-qwen3-0.6B.json")
#: Between two looks at the memory, in seconds; and the part of the time that they may take.
INTERVAL_S, LOOKING = 0.02, 0.02
_OWN = """
import sys
import numpy as np
from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.ports.registry import build
port = build(sys.argv[2], open_checkpoint(sys.argv[1]), None, "cpu")
port.logits(np.zeros((1, int(sys.argv[3])), np.int64))
port.close()
"""


@dataclass
class Figures:
    """One run of one command: wall and processor seconds, and memory.

    Attributes:
        peak_mb: of the whole tree, proportional set size, as often as it was looked at.
        largest_mb: of the largest process, resident set size, as the kernel counts it: exact.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    largest_mb: float = 0.0


def measure(command: list[str]) -> Figures:
    """Run a command to its end; a command that fails stops the benchmark."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak, done = [0.0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(child.pid, peak, done))
        watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
        wall = time.perf_counter() - start
        if status != 0:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')}")
    return Figures(wall, usage.ru_utime + usage.ru_stime, peak[0], usage.ru_maxrss / 1024)


def _watch(root: int, peak: list[float], done: threading.Event) -> None:
    """Proportional set size of the process tree: shared pages are counted once. The kernel walks
    through all pages for it, so that there are fewer looks at a large process."""
    took = 0.0
    while not done.wait(max(INTERVAL_S, took / LOOKING)):
        start = time.perf_counter()
        peak[0] = max(peak[0], sum(_memory_mb(pid) for pid in _tree(root)))
        took = time.perf_counter() - start


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        try:
            threads = os.listdir(f"/proc/{pid}/task")
            children = " ".join(Path(f"/proc/{pid}/task/{t}/children").read_text() for t in threads)
        except OSError:  # it ended meanwhile
            continue
        found += [int(child) for child in children.split()]
    return found


def _memory_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def write_between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between the comments ``<!-- name: begin -->`` and ``<!-- name: end -->``."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text, inside = page.read_text(encoding="utf-8"), "\n".join([begin, *lines, end])
    text, found = re.subn(f"{begin}.*?{end}", lambda _: inside, text, flags=re.S)
    if not found:
        raise SystemExit(f"{page}: has no {begin}")
    page.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Verification:
    """A command of ``gpt-verify``, and what it is measured against.

    Attributes:
        words: what stands in the table.
        argv: the command.
        naive: the script by hand.
    """

    words: str
    argv: list[str]
    naive: list[str]


def verifications(where: Path, family: bool) -> list[Verification]:
    """What is measured.

    Args:
        where: ``openai`` and ``huggingface`` below it; of a family, the checkpoint itself.
    """
    python = sys.executable
    run = [python, "-m", "gpt_verify", "run", "--quiet", "--checkpoint"]
    short = ["--length", str(SHORT)]
    if family:
        naive = [python, str(HERE / "bench_naive_family.py"), str(where), str(SHORT)]
        words = f"`run --checkpoint DIR --port huggingface-sdpa --length {SHORT}`"
        argv = [*run, str(where), "--port", "huggingface-sdpa", *short]
        return [Verification(words, argv, naive)]
    pair = [str(where / "openai"), str(where / "huggingface")]
    by_hand = [python, str(HERE / "bench_naive.py"), *pair]
    one = [*run, pair[0], "--port", f"huggingface-sdpa={pair[1]}"]
    both = [*one, "--port", f"huggingface-eager={pair[1]}"]
    words = "run --checkpoint openai --port huggingface-sdpa=DIR"
    return [
        Verification(f"`{words} --length {SHORT}`", [*one, *short], [*by_hand, str(SHORT)]),
        Verification(f"`{words}`", one, [*by_hand, str(LONG)]),
        Verification(f"`{words} --port huggingface-eager=DIR`", both, [*by_hand, str(LONG)]),
    ]


def compare(
    commands: Sequence[Verification], rounds: int
) -> dict[str, list[tuple[Figures, Figures]]]:
    """Each command and its script in turn, after one round that is not counted where there are
    several."""
    found: dict[str, list[tuple[Figures, Figures]]] = {}
    for index in range(rounds + (rounds > 1)):
        for command in commands:
            pair = measure(command.argv), measure(command.naive)
            if index or rounds == 1:
                found.setdefault(command.words, []).append(pair)
                shown = " against ".join(
                    f"{f.wall_s:.1f} s, {f.cpu_s:.1f} s CPU, {f.peak_mb:,.0f} MB" for f in pair
                )
                print(f"  {command.words}: {shown}", flush=True)
    return found


def ratios(rounds: Sequence[tuple[Figures, Figures]]) -> dict[str, float]:
    """Median over the rounds of ours ÷ theirs, each pair from the same round."""
    return {
        field: statistics.median(getattr(a, field) / getattr(b, field) for a, b in rounds)
        for field in ("wall_s", "cpu_s", "peak_mb")
    }


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a command."""
    lines = [
        "| shape | command | rounds | time ÷ by hand | CPU ÷ by hand | peak memory ÷ by hand |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for result in results:
        for words, of in result["ratios"].items():
            times = " | ".join(f"{of[field]:.2f}" for field in ("wall_s", "cpu_s", "peak_mb"))
            rounds = len(result["figures"][words])
            lines.append(f"| {result['size']} | {words} | {rounds} | {times} |")
    return lines


@contextmanager
def _checkpoint(size: str, family: str | None, where: Path | None) -> Iterator[Path]:
    if where is not None:
        yield where
        return
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "checkpoint"
        if family is not None:
            synthesize_family(path, family, size, 1)
        else:
            synthesize(path, resolve_size(size), 1, format="both")
        yield path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="124M", help="as `gpt-verify synth --size` takes it")
    parser.add_argument("--family", metavar="NAME", help="as `gpt-verify synth --family` takes it")
    parser.add_argument("--checkpoint", type=Path, help="where the synthetic one of that size is")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, action="append", help="the first, second, … command")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write its table from docs/results")
    arguments = parser.parse_args(argv)
    if arguments.page:
        made = [json.loads((RESULTS / name).read_text()) for name in SHOWN]
        write_between(arguments.page, "bench", table(made))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with _checkpoint(arguments.size, arguments.family, arguments.checkpoint) as where:
        every = verifications(where, arguments.family is not None)
        chosen = [c for i, c in enumerate(every, 1) if i in (arguments.only or range(1, 9))]
        figures = compare(chosen, arguments.rounds)
    size = " ".join(filter(None, (arguments.family, arguments.size)))
    result = {
        "size": size,
        "figures": {
            name: [[asdict(ours), asdict(theirs)] for ours, theirs in runs]
            for name, runs in figures.items()
        },
        "ratios": {name: ratios(runs) for name, runs in figures.items()},
        "environment": environment(),
    }
    print(*table([result]), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
