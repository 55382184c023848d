"""Calibration: what correct ports score, over many configurations, weights and precisions.

    python scripts/calibrate.py --configs 240 --json docs/results/calibration.json \\
        --markdown docs/results/calibration.md
    python scripts/calibrate.py --size 774M --configs 2 --json docs/results/calibration-774M.json
    python scripts/instructions.py avx2 --threads 1 -- python scripts/calibrate.py --configs 240 \\
        --json docs/results/calibration-avx2.json
    python scripts/calibrate.py --families --configs 240 \\
        --json docs/results/calibration-families.json
    python scripts/calibrate.py --page docs/numerics.md

The report says on which processor it was made, and with which instructions of each library.

Each configuration has random odd sizes, a random weight scale, weights with or without large
residual channels, and inputs of 1 to n_ctx tokens. transformers' GPT2LMHeadModel is judged on it in
float32, bfloat16 and float16, with eager and with fused attention, and in float64 (architecture).
With ``--families`` it is transformers' model of each family in turn (``calibrate_families.py``).
Every one of these ports is correct, so that a score beyond its limit is a false alarm, and the
script exits with status 1. Limits are derived (``gpt_verify.numerics.scores``,
``gpt_verify.graph.cascade.LIMIT_FLOORS``) and only tested here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from bench import write_between
from calibrate_families import inputs_of, model_of, ports_of
from instructions import NAME, in_force, line
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.synthetic import resolve_size, synthetic_tensors
from gpt_verify.findings import Status
from gpt_verify.graph.run import run as forward
from gpt_verify.inputs import Input
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent, environment
from gpt_verify.numerics.precision import FLOAT16
from gpt_verify.reference import Config, tensor_table
from gpt_verify.sites import sites

PORTS = ("huggingface-eager", "huggingface-sdpa")
DTYPES = ("float32", "bfloat16", "float16")
#: What is compared with budgets and floors at every site. The laws have limits of the same kinds.
SCORED = ("architecture", "activations.local", "activations.cascaded", "logits")
#: Where committed results are.
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: Of the distribution of scores that the documentation shows.
QUANTILES = (0.5, 0.99, 1.0)


def random_config(rng: np.random.Generator) -> Config:
    """Sizes from one head of two channels to a few hundred channels, seldom round numbers."""
    n_head = int(rng.integers(1, 7))
    n_embd = n_head * int(rng.choice([2, 3, 5, 8, 16, 21, 32, 40, 64]))
    return Config(
        n_vocab=int(rng.integers(3, 700)),
        n_ctx=int(rng.integers(1, 140)),
        n_embd=n_embd,
        n_head=n_head,
        n_layer=int(rng.integers(1, 5)),
    )


def plain_tensors(config: Config, seed: int, scale: float) -> Mapping[str, NDArray[np.float32]]:
    """Independent normal weights: no channel of the residual stream is larger than another."""
    rng = np.random.default_rng([seed, 7])
    deviation = {"gain": 0.3, "bias": 0.1, "embedding": scale}
    tensors = {}
    for name, spec in tensor_table(config).items():
        size = deviation.get(spec.role, scale / np.sqrt(spec.shape[0]))
        value = rng.normal(1.0 if spec.role == "gain" else 0.0, size, spec.shape)
        tensors[name] = value.astype(np.float32)
    return tensors


def released_inputs(config: Config, rng: np.random.Generator) -> list[Input]:
    """The inputs of a large model: one token, odd lengths up to 128, a batch, and one token over
    and over."""
    shapes = [(1, 1), (1, 17), (1, 128), (3, 33)]
    inputs = [Input(f"{s}", rng.integers(0, config.n_vocab, s, dtype=np.int64)) for s in shapes]
    same = np.full((1, 64), rng.integers(config.n_vocab), np.int64)
    return [*inputs, Input("one token", same)]


def random_inputs(config: Config, rng: np.random.Generator) -> list[Input]:
    """One token, all of n_ctx, something in between, a batch, and one token over and over."""
    lengths = sorted({1, config.n_ctx, int(rng.integers(1, config.n_ctx + 1))})
    shapes = [(1, length) for length in lengths] + [(3, max(1, config.n_ctx // 2))]
    inputs = [Input(f"{s}", rng.integers(0, config.n_vocab, s, dtype=np.int64)) for s in shapes]
    same = np.full((1, config.n_ctx), rng.integers(config.n_vocab), np.int64)
    return [*inputs, Input("one token", same)]


#: Law, operation, precision, statistic.
Key = tuple[str, str, str, str]


class Distribution:
    """Scores by law, kind of operation, precision and statistic."""

    def __init__(self) -> None:
        self.scores: dict[Key, list[tuple[float, float, int]]] = defaultdict(list)
        self.alarms: list[dict[str, Any]] = []
        self.runs = 0
        self.configs: dict[int, dict[str, Any]] = {}

    def add(self, row: dict[str, Any], report: Any, config: Config) -> None:
        self.runs += 1
        self.configs[row["index"]] = {**config.as_dict(), "architecture": config.architecture}
        if report.error:
            self.alarms.append({**row, "port": report.name, "error": report.error})
        kinds = sites(config)
        for finding in report.findings:
            if finding.status is Status.FAILED:
                alarm = {"id": finding.id, "site": finding.site, "score": finding.score}
                alarm |= {"limit": finding.limit, "message": finding.message}
                self.alarms.append({**row, "port": report.name, "dtype": report.dtype, **alarm})
            if finding.score is None or finding.site is None or finding.limit is None:
                continue
            if finding.id not in SCORED:
                continue
            kind = kinds[finding.site].operation
            dtype = "float64" if finding.id == "architecture" else report.dtype
            key = (finding.id, kind, dtype)
            for name, statistic in finding.details.items():
                if "limit" in statistic:
                    pair = (statistic["score"], statistic["limit"], row["index"])
                    self.scores[(*key, name)].append(pair)
            if not finding.details:
                self.scores[(*key, "floors")].append((finding.score, finding.limit, row["index"]))

    def merge(self, other: Distribution) -> None:
        """What was found of other configurations."""
        for key, scores in other.scores.items():
            self.scores[key] += scores
        self.alarms += other.alarms
        self.runs += other.runs
        self.configs |= other.configs

    def table(self) -> list[dict[str, Any]]:
        rows = []
        for (law, kind, dtype, statistic), seen in sorted(self.scores.items()):
            scores, limits, indices = np.array(seen).T
            row: dict[str, Any] = {"law": law, "operation": kind, "dtype": dtype}
            row |= {"statistic": statistic, "count": len(seen)}
            row |= {f"q{q:g}": float(np.quantile(scores, q)) for q in QUANTILES}
            row["largest_over_limit"] = float(np.max(scores / limits))
            index = int(indices[np.argmax(scores / limits)])
            row["largest_in"] = {"index": index, **self.configs[index]}
            rows.append(row)
        return rows


#: Told after each configuration, with what was found so far.
Keep = Callable[["Distribution"], None]


def calibrate(
    configs: range, seed: int, size: Config | None = None, keep: Keep = lambda found: None
) -> Distribution:
    """Judge every port on every configuration; on several weights of one, where a size is given."""
    found = Distribution()
    for index in configs:
        rng = np.random.default_rng([seed, index])
        config = size or random_config(rng)
        scale = float(np.exp(rng.uniform(-2.0, 0.7)))
        large = bool(rng.integers(2))
        tensors = (synthetic_tensors if large else plain_tensors)(config, index, scale=scale)
        tensors = {name: tensors[name] for name in tensors}
        checkpoint = Checkpoint(Path("calibration"), "openai", config, tensors)
        inputs = (released_inputs if size else random_inputs)(config, rng)
        row = {"index": index, "config": config.as_dict(), "scale": scale, "large": large}
        judge_all(found, row, checkpoint, inputs, PORTS)
        keep(found)
    return found


def calibrate_families(
    configs: range, seed: int, keep: Keep = lambda found: None, jobs: int = 1
) -> Distribution:
    """Judge transformers' model of each family in turn, in so many processes."""
    found = Distribution()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for one in pool.map(partial(of_a_family, seed), configs):
            found.merge(one)
            keep(found)
    return found


def of_a_family(seed: int, index: int) -> Distribution:
    """One configuration."""
    found, rng = Distribution(), np.random.default_rng([seed, index])
    with model_of(index, rng) as (model, checkpoint):
        row = {"index": index, **asdict(model)}
        inputs = inputs_of(checkpoint.config, model, rng)
        judge_all(found, row, checkpoint, inputs, ports_of(model))
    return found


def largest_number(checkpoint: Checkpoint, inputs: Sequence[Input]) -> float:
    """The largest size of anything that the reference computes on these inputs."""
    largest = 0.0
    lookup, config = checkpoint.tensors.__getitem__, checkpoint.config
    for given in inputs:
        for tokens_T in given.tokens:
            for _, value in forward(lookup, config, tokens_T, {}):
                finite = value[np.isfinite(value)]
                largest = max(largest, float(np.max(np.abs(finite), initial=0.0)))
    return largest


def judge_all(
    found: Distribution,
    row: dict[str, Any],
    checkpoint: Checkpoint,
    inputs: Sequence[Input],
    ports: Sequence[str],
) -> None:
    """Judge every port of a checkpoint in every precision that holds its numbers: what leaves
    float16's range is infinite in a correct port."""
    for dtype in DTYPES:
        if dtype == "float16" and largest_number(checkpoint, inputs) > FLOAT16.largest:
            print(f"configuration {row['index'] + 1}: beyond float16's range", file=sys.stderr)
            continue
        for port in ports:
            report = judge(port, checkpoint, inputs, dtype, "cpu", Silent(), laws=())
            seen = len(found.alarms)
            found.add(row, report, checkpoint.config)
            for alarm in found.alarms[seen:]:
                print(alarm, file=sys.stderr, flush=True)
    if sys.stderr.isatty() or row["index"] % 20 == 19:
        print(f"configuration {row['index'] + 1}", file=sys.stderr)


def markdown(found: Distribution, name: str, made_on: str) -> str:
    """The table for the documentation: RMS, maximum and floors of every operation.

    Args:
        found: the scores of all runs.
        name: of the file with the results.
        made_on: the machine and the versions.
    """
    lines = [
        f"<!-- figures: {name} -->",
        "",
        f"{len(found.configs)} configurations, {found.runs} runs of correct ports, "
        f"{len(found.alarms)} false alarms.",
        "",
        f"Made with {made_on}.",
        "",
        "| law | operation | precision | statistic | median | 99 % | largest | largest ÷ limit |",
        "|---|---|---|---|--:|--:|--:|--:|",
    ]
    for row in found.table():
        if row["statistic"] in ("rms", "max", "floors"):
            cells = [row["law"], row["operation"], row["dtype"], row["statistic"]]
            cells += [f"{row[f'q{q:g}']:.2f}" for q in QUANTILES]
            lines.append("| " + " | ".join([*cells, f"{row['largest_over_limit']:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What the page of the numerics shows: each run in a line, and of ``calibration.json`` the
    operation of each law, precision and statistic that came closest to its limit.

    Args:
        results: name of the file → what it holds.
    """
    lines = ["| result | models | configurations | runs | false alarms | made with |"]
    lines += ["|---|---|--:|--:|--:|---|"]
    for name, result in results.items():
        size = result["size"]
        models = f"{size['n_layer']} layers, {size['n_embd']} channels" if size else "random"
        models += ", of the families" * result.get("families", False)
        chosen = result["instructions"]["settings"].get("ATEN_CPU_CAPABILITY", "native")
        cells = [f"[`{name}`](results/{name})", models, result["configs"], result["runs"]]
        cells += [len(result["false_alarms"]), line(chosen, result["instructions"])]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    worst: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for row in results["calibration.json"]["scores"]:
        key = row["law"], row["dtype"], row["statistic"]
        if key not in worst or row["largest_over_limit"] > worst[key]["largest_over_limit"]:
            worst[key] = row
    lines += ["", "| law | precision | statistic | operation | median | 99 % | largest | ÷ limit |"]
    lines += ["|---|---|---|---|--:|--:|--:|--:|"]
    for (law, dtype, statistic), row in worst.items():
        cells = [law, dtype, statistic, row["operation"]]
        cells += [f"{row[f'q{q:g}']:.2f}" for q in QUANTILES]
        cells.append(f"{row['largest_over_limit']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(page: Path) -> None:
    """Put the summary of all committed results between its lines."""
    names = ["calibration.json", *sorted(p.name for p in RESULTS.glob("calibration-*.json"))]
    results = {name: json.loads((RESULTS / name).read_text(encoding="utf-8")) for name in names}
    write_between(page, "calibration", [summary(results)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=240)
    parser.add_argument("--first", type=int, default=0, help="begin here, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=resolve_size, help="124M … 1558M or V,P,D,H,L; else random")
    parser.add_argument("--families", action="store_true", help="random models of the families")
    parser.add_argument("--jobs", type=int, default=1, help="processes, with --families")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--page", type=Path, help="runs nothing: shows what was committed there")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(arguments.page)
        return 0
    start = time.perf_counter()
    known = in_force()
    made_on = line(os.environ.get(NAME, "native"), known)
    print(made_on, file=sys.stderr)
    configs = range(arguments.first, arguments.configs)
    name = arguments.json.name if arguments.json else "calibration.json"

    def keep(found: Distribution) -> None:
        """Write what there is, so that an interrupted run has not been for nothing."""
        if arguments.json:
            result = {
                "configs": len(found.configs),
                "seed": arguments.seed,
                "size": arguments.size.as_dict() if arguments.size else None,
                "families": arguments.families,
                "runs": found.runs,
                "false_alarms": found.alarms,
                "seconds": round(time.perf_counter() - start),
                "environment": environment(),
                "instructions": known,
                "scores": found.table(),
            }
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        if arguments.markdown:
            arguments.markdown.write_text(markdown(found, name, made_on))

    if arguments.families:
        found = calibrate_families(configs, arguments.seed, keep, arguments.jobs)
    else:
        found = calibrate(configs, arguments.seed, arguments.size, keep)
    print(markdown(found, name, made_on))
    return 1 if found.alarms else 0


if __name__ == "__main__":
    sys.exit(main())
