"""Tiny models in which no two dimensions are equal, and a port judged on them in one line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.findings import Finding, PortReport, Status
from gpt_verify.inputs import Input, seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.reference import Config

TESTS = Path(__file__).resolve().parent

#: V = 101, P = 19, D = 24, H = 4, K = 6, L = 3, C = 72, F = 96; B = 2 below.
CONFIG = Config(n_vocab=101, n_ctx=19, n_embd=24, n_head=4, n_layer=3)


def checkpoint(config: Config = CONFIG, seed: int = 0, scale: float = 1.0) -> Checkpoint:
    """A synthetic checkpoint in memory, every tensor made once."""
    tensors = dict(synthetic_tensors(config, seed, scale=scale))
    return Checkpoint(Path("in-memory"), "openai", config, tensors)


def batch(config: Config, rows: int, length: int, seed: int = 0) -> Input:
    """A batch whose rows differ."""
    rng = np.random.default_rng([seed, rows, length])
    tokens = rng.integers(0, config.n_vocab, (rows, length), dtype=np.int64)
    return Input(f"{rows} × {length}", tokens)


#: One token, two rows, every position: what a short run needs to see every kind of fault.
INPUTS = [seeded(CONFIG, 1, 0), batch(CONFIG, 2, 11), seeded(CONFIG, CONFIG.n_ctx, 0)]


def judged(
    spec: str,
    source: Checkpoint | None = None,
    inputs: list[Input] | None = None,
    dtype: str | None = None,
    laws: Collection[str] | None = None,
) -> PortReport:
    """The report of one port, by these laws beside its weights, its sites and its logits; by all
    where None."""
    return judge(spec, source or checkpoint(), inputs or INPUTS, dtype, "cpu", Silent(), laws=laws)


def failed(report: PortReport, *laws: str) -> set[str | None]:
    """Sites at which one of these laws failed."""
    return {f.site for f in failures(report) if f.id in laws}


def failures(report: PortReport) -> list[Finding]:
    return [f for f in report.findings if f.status is Status.FAILED]


def failed_laws(report: PortReport) -> set[str]:
    return {f.id for f in failures(report)}


def finding(report: PortReport, law: str, site: str | None = None) -> Finding:
    return next(f for f in report.findings if (f.id, f.site) == (law, site))


def statuses(report: PortReport, law: str) -> dict[str | None, Status]:
    return {f.site: f.status for f in report.findings if f.id == law}
