"""Altered ports of large models: each must be refuted where it is wrong, and nothing else blamed.

    python scripts/altered_sizes.py --size 355M --checkpoint DIR --out altered-355M.json
    python scripts/altered_sizes.py --page docs/benchmarks.md     # from docs/results/altered-*.json

Transformers' model with the checkpoint's weights, altered in one of three ways after it was loaded:
one bit of one weight, the exact GELU in one late block, a head that is detached from the graph. It
is judged under every law. ``--checkpoint`` names the directory that ``gpt-verify synth --size SIZE
--seed 1 --format both`` wrote to. Exit status 1 where one is not refuted as it should be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench import write_between

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.findings import PortReport, Status
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent, environment
from gpt_verify.port import Port
from gpt_verify.ports.registry import build

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Altered:
    """One alteration.

    Attributes:
        alter: of the module; the number of blocks is handed to it.
        site: at which the port must part from the reference, with the number of a late block for
            ``{late}``; None where its function is right.
        laws: that must fail; others may only fail where the function is another one.
        function: whether its logits differ beyond rounding.
    """

    alter: Callable[[Any, int], None]
    site: str | None
    laws: tuple[str, ...]
    function: bool


class Detached(torch.nn.Linear):
    """A head through which nothing comes back to its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.detach())


def one_bit(module: Any, late: int) -> None:
    with torch.no_grad():
        module.transformer.h[late].mlp.c_proj.weight.view(torch.int32)[3, 5] ^= 1


def exact_gelu(module: Any, late: int) -> None:
    module.transformer.h[late].mlp.act = torch.nn.GELU()


def head_detached(module: Any, late: int) -> None:
    module.lm_head.__class__ = Detached


PORTS = {
    "one bit of one weight": Altered(
        one_bit, "h.{late}.mlp.out", ("architecture", "weights.values"), False
    ),
    "exact GELU in one block": Altered(
        exact_gelu, "h.{late}.mlp.act", ("architecture", "activations.local"), True
    ),
    "head detached": Altered(
        head_detached, None, ("gradient", "tying.gradient", "tying.graph"), False
    ),
}


def complaints(altered: Altered, late: int, report: PortReport) -> list[str]:
    """What is not as it should be."""
    failed = {f.id for f in report.findings if f.status is Status.FAILED}
    found = [f"{law} did not fail" for law in altered.laws if law not in failed]
    if report.error:
        found.append(report.error)
    site = altered.site and altered.site.format(late=late)
    if site and report.first_divergence != site:
        found.append(f"it parts at {report.first_divergence}, not at {site}")
    if not altered.function and failed - set(altered.laws):
        found.append(f"{', '.join(sorted(failed - set(altered.laws)))} failed, too")
    return found


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each port of each size."""
    lines = [
        "| shape | what was altered | verdict | diverges at | laws that fail | explained by |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        for name, port in found["ports"].items():
            laws = ", ".join(sorted({check.partition("[")[0] for check in port["failed"]}))
            named = ", ".join(f"`{fault}`" for fault in port["explained_by"]) or "–"
            where = f"`{port['first_divergence']}`" if port["first_divergence"] else "–"
            verdict = port["verdict"] + "".join(f"; {what}" for what in port["complaints"])
            lines.append(f"| {found['size']} | {name} | {verdict} | {where} | {laws} | {named} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", help="for the report: 355M")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--only", action="append", choices=PORTS)
    parser.add_argument("--length", type=int, default=16, help="tokens")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--page", type=Path, help="the page that shows the table, and nothing else")
    arguments = parser.parse_args(argv)
    if arguments.page:
        files = sorted(RESULTS.glob("altered-*.json"), key=lambda path: (len(path.name), path.name))
        shown = table([json.loads(path.read_text(encoding="utf-8")) for path in files])
        write_between(arguments.page, "altered", shown)
        return
    if not (arguments.size and arguments.checkpoint):
        parser.error("--size and --checkpoint, or --page")
    source = open_checkpoint(arguments.checkpoint / "openai")
    late = source.config.n_layer - 3
    results: dict[str, Any] = {"size": arguments.size, "ports": {}, "environment": environment()}
    wrong = False
    for name in arguments.only or PORTS:
        altered = PORTS[name]

        def make(altered: Altered = altered) -> Port:  # bound now
            port: Any = build("huggingface-eager", source, None, "cpu")
            altered.alter(port.module, late)
            return port

        inputs = [seeded(source.config, arguments.length, 0)]
        report = judge(name, source, inputs, None, "cpu", Silent(), build=make)
        failures = [f for f in report.findings if f.status is Status.FAILED]
        said = complaints(altered, late, report)
        wrong = wrong or bool(said)
        print(f"{name}: {report.verdict.value} at {report.first_divergence}", flush=True)
        print(f"  failed: {', '.join(sorted({f.id for f in failures}))}")
        print(f"  explained by: {', '.join(report.explained_by) or 'nothing'}")
        print(f"  {'; '.join(said) or 'as it should be'}")
        results["ports"][name] = {
            "verdict": report.verdict.value,
            "first_divergence": report.first_divergence,
            "failed": [f"{f.id}[{f.site}]" if f.site else f.id for f in failures],
            "explained_by": list(report.explained_by),
            "complaints": said,
        }
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
