"""Time and memory of a full verification, as ratios to what people do instead.

    python scripts/bench.py                       # 124M shape, 128 tokens, against a naive script
    python scripts/bench.py --own huggingface-sdpa --size 1558M --rounds 1

The first form runs ``gpt-verify run`` on a pair (OpenAI's checkpoint and Hugging Face's directory;
every weight, every site, float64 and float32), the same with OpenAI's graph in TensorFlow as a
second port, and ``bench_naive.py``, which loads the two and compares the logits. The second form
compares the peak memory of verifying one port with that of the port alone. All figures are of
whole process trees; only ratios of one run mean anything on a shared machine.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize
from gpt_verify.judging.run import environment

HERE = Path(__file__).resolve().parent
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


def compare(commands: dict[str, list[str]], rounds: int) -> dict[str, list[Figures]]:
    """Run the commands in turn, after one round that is not counted where there are several."""
    figures: dict[str, list[Figures]] = {name: [] for name in commands}
    for index in range(rounds + (rounds > 1)):
        for name, command in commands.items():
            result = measure(command)
            if index or rounds == 1:
                figures[name].append(result)
                print(
                    f"  {name}: {result.wall_s:.1f} s, {result.cpu_s:.1f} s CPU, "
                    f"{result.peak_mb:,.0f} MB",
                    flush=True,
                )
    return figures


def ratio(ours: list[Figures], theirs: list[Figures]) -> dict[str, float]:
    """Median over the rounds of ours ÷ theirs, each pair from the same round."""
    return {
        field: statistics.median(
            getattr(a, field) / getattr(b, field) for a, b in zip(ours, theirs, strict=True)
        )
        for field in ("wall_s", "cpu_s", "peak_mb")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="124M", help="124M, 355M, 774M, 1558M or V,P,D,H,L")
    parser.add_argument(
        "--checkpoint", type=Path, help="directory made by `gpt-verify synth --format both`"
    )
    parser.add_argument("--length", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--own", metavar="PORT", help="compare with this port alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["HF_HUB_OFFLINE"] = "1"

    with tempfile.TemporaryDirectory() as made:
        where = arguments.checkpoint
        if where is None:
            where = Path(made) / "checkpoint"
            synthesize(
                where, resolve_size(arguments.size), 1, format="openai" if arguments.own else "both"
            )
        openai = where / "openai" if (where / "openai").is_dir() else where
        python, length = sys.executable, str(arguments.length)
        run = [
            python,
            "-m",
            "verify",
            "run",
            "--quiet",
            "--checkpoint",
            str(openai),
            "--length",
            length,
        ]
        if arguments.own:
            commands = {
                "gpt-verify": [*run, "--port", arguments.own],
                "port alone": [python, "-c", _OWN, str(openai), arguments.own, length],
            }
        else:
            other = str(where / "huggingface")
            pair = ["--port", f"huggingface-sdpa={other}"]
            naive = [python, str(HERE / "bench_naive.py"), str(openai), other, length]
            commands = {
                "gpt-verify": [*run, *pair],
                "gpt-verify and OpenAI's graph": [*run, *pair, "--port", "openai-tf"],
                "naive": naive,
            }
        figures = compare(commands, arguments.rounds)

    *ours, other_name = commands
    ratios = {name: ratio(figures[name], figures[other_name]) for name in ours}
    for name, of in ratios.items():
        print(
            f"{name} ÷ {other_name}, median of {arguments.rounds}: {of['wall_s']:.2f} × time, "
            f"{of['cpu_s']:.2f} × CPU, {of['peak_mb']:.2f} × peak memory"
        )
    if arguments.json:
        result = {
            "size": arguments.size,
            "length": arguments.length,
            "figures": {name: [asdict(f) for f in runs] for name, runs in figures.items()},
            "ratios": ratios,
            "environment": environment(),
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
