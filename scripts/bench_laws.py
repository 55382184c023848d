"""How long each law takes, port by port: what a change of a law costs its users.

    python scripts/bench_laws.py                                    # the default checkpoint
    python scripts/bench_laws.py --size 124M --json laws-124M.json  # synthetic, of that shape

The budget of the whole suite on two cores: 90 s on the default checkpoint with every built-in port,
6 minutes on a checkpoint of 124M's shape. Wall times mean little on a busy machine; the processor
time beside them is this process's alone, without the TensorFlow process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize
from gpt_verify.findings import Finding, PortReport
from gpt_verify.judging.run import Options, environment, run
from gpt_verify.laws.table import CHECKS

SITES, REST = "weights, sites, logits", "diagnosis, stored graph"
NAMES = {law.id for law in CHECKS}
Seconds = tuple[float, float]


class Timed:
    """``gpt_verify.judging.run.Progress`` that keeps the time from step to step.

    Attributes:
        ports: port → law → (wall seconds, processor seconds).
    """

    def __init__(self) -> None:
        self.ports: dict[str, dict[str, Seconds]] = {}
        self._last = _now()
        self._laws: dict[str, Seconds] = {}

    def port(self, name: str, steps: int) -> None:
        # Building the port is in the first step; what was built before it was another one.
        self._laws = self.ports.setdefault(name, {})

    def step(self, what: str) -> None:
        self._add(what if what in NAMES else SITES)

    def fails(self, finding: Finding) -> None: ...

    def done(self, report: PortReport) -> None:
        self._add(REST)
        self._laws = {}

    def _add(self, what: str) -> None:
        now, before = _now(), self._laws.get(what, (0.0, 0.0))
        wall, cpu = (a - b + c for a, b, c in zip(now, self._last, before, strict=True))
        self._laws[what] = (wall, cpu)
        self._last = now


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


def table(timed: Timed) -> list[str]:
    """One line a law, its wall and processor seconds for each port, the costliest first."""
    laws = {law for laws in timed.ports.values() for law in laws}
    cost = {law: sum(laws.get(law, (0, 0))[0] for laws in timed.ports.values()) for law in laws}
    ordered = sorted(cost, key=lambda law: cost[law], reverse=True)
    width = max(map(len, laws))
    names = [name[-24:] for name in timed.ports]
    lines = [f"{'wall s (processor s)':<{width}}  " + "  ".join(f"{n:>24}" for n in names)]
    for law in ordered:
        cells = [laws.get(law, (0.0, 0.0)) for laws in timed.ports.values()]
        words = "  ".join(f"{wall:>15.2f} ({cpu:>6.2f})" for wall, cpu in cells)
        lines.append(f"{law:<{width}}  {words}")
    sums = [tuple(map(sum, zip(*laws.values(), strict=True))) for laws in timed.ports.values()]
    words = "  ".join(f"{wall:>15.2f} ({cpu:>6.2f})" for wall, cpu in sums)
    return [*lines, f"{'all':<{width}}  {words}"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", help="a synthetic checkpoint: 124M … 1558M or V,P,D,H,L")
    parser.add_argument("--checkpoint", type=Path, help="default: the one that is shipped")
    parser.add_argument("--port", action="append", help="default: as gpt-verify run")
    parser.add_argument("--length", type=int, action="append", help="as of gpt-verify run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        where = arguments.checkpoint
        if arguments.size is not None:
            where = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoint"
            synthesize(where, resolve_size(arguments.size), 1, format="openai")
        ports = arguments.port or ()
        lengths = tuple(arguments.length) if arguments.length else None
        timed, start = Timed(), _now()
        report = run(where, ports, Options(lengths=lengths), timed)
        seconds = time.perf_counter() - start[0]
    print("\n".join(table(timed)))
    print(f"{report.verdict.value}: {len(report.ports)} ports in {seconds:.1f} s")
    if arguments.json:
        result = {
            "config": report.checkpoint["config"],
            "inputs": report.inputs,
            "verdict": report.verdict.value,
            "seconds": round(seconds, 1),
            "columns": ["wall_s", "cpu_s"],
            "ports": {
                port: {law: [round(s, 2) for s in both] for law, both in laws.items()}
                for port, laws in timed.ports.items()
            },
            "environment": environment(),
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
