"""The main job: one checkpoint, some ports, every law, one report."""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_verify import __version__
from gpt_verify.checkpoint.files import refusal, size_of
from gpt_verify.engines.tensorflow import started_early
from gpt_verify.errors import UsageError
from gpt_verify.findings import PortReport, Report, Verdict
from gpt_verify.inputs import Input
from gpt_verify.judging.examination import STOPPED
from gpt_verify.judging.made_with import made_with
from gpt_verify.judging.one_port import judge_one
from gpt_verify.judging.options import Options as Options
from gpt_verify.judging.options import chosen_inputs as chosen_inputs
from gpt_verify.judging.progress import Progress as Progress
from gpt_verify.judging.progress import Silent as Silent
from gpt_verify.judging.requirements import requirements
from gpt_verify.judging.selection import Request, request
from gpt_verify.judging.side_by_side import (
    judge_alone,
    laws_beside,
    lost,
    ports_beside,
    task_of,
)
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.process.errand import Lost, errand
from gpt_verify.process.pool import pool, scheduler
from gpt_verify.process.processor import processor
from gpt_verify.reference.weights import parameter_count


def run(
    checkpoint: Path | None,
    ports: Sequence[str],
    options: Options | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge ports against a checkpoint.

    Args:
        checkpoint: a directory of either format; None takes the one that ships with the package.
        ports: as after ``--port``; none takes every built-in port that is installed.
        options: see ``Options``.
        progress: told how far the run is.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        MissingDependency: no port was given, and no built-in one can run.
        UsageError: options that make no sense.
        A port that cannot be built or breaks is no exception: its report carries the error.
    """
    return run_request(request(checkpoint, ports, options or Options()), progress)


def run_request(
    asked: Request,
    progress: Progress | None = None,
    checks: Collection[str] | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    fail_fast: bool = False,
) -> Report:
    """Judge the ports of a request; see ``run``.

    Args:
        asked: the request.
        progress: told how far the run is.
        checks: ids of those that are asked for; all where None. Others may be left out.
        jobs: processes that may work side by side (``side_by_side.jobs_for``). What is found does
            not depend on it.
        cluster: the address of a Dask scheduler whose workers judge the ports instead.
        fail_fast: stop at the first failure, in this process alone.

    Raises:
        UsageError: a port that is in memory cannot be sent to a cluster.
    """
    opened, options = asked.checkpoint, asked.options
    progress = progress or Silent()
    inputs = chosen_inputs(opened, options)
    requirements(options.require)
    with ThreadPoolExecutor(1) as thread:
        # Hashing leaves the interpreter free, and is done while the ports run.
        hashes: Future[dict[str, str]] = thread.submit(sha256, opened.files)
        if fail_fast:
            reports = tuple(_to_the_first_failure(asked, progress, checks))
        elif cluster is not None:
            reports = tuple(_in_cluster(asked, progress, checks, cluster))
        elif jobs > 1 and len(asked.specs) > 1:
            reports = tuple(_together(asked, progress, checks, jobs))
        else:
            reports = tuple(_in_turn(asked, progress, checks, jobs))
        files = hashes.result()
    config = opened.config
    return Report(
        checkpoint={
            "path": str(opened.path),
            "format": opened.format,
            "config": config.as_dict(),
            "architecture": config.architecture,
            "tied": config.tied,
            "parameters": parameter_count(config),
            "files": files,
            "remarks": list(opened.remarks),
        },
        ports=reports,
        inputs=described(inputs, options),
        environment=environment(),
        repeat=asked.repeat(),
    )


def _in_turn(
    asked: Request, progress: Progress, checks: Collection[str] | None, jobs: int
) -> Iterator[PortReport]:
    """The ports one after the other, each with as many processes."""
    shared = SharedWeights(asked.checkpoint.tensors, record=len(asked.specs) > 1)
    with started_early("openai-tf" in asked.specs[1:]):
        for spec in asked.specs:
            with laws_beside(jobs, task_of(asked, spec, checks)) as elsewhere:
                yield judge_one(asked, spec, shared, progress, checks, elsewhere)
            gc.collect()  # modules hold cycles, and the next port may need the memory


def _to_the_first_failure(
    asked: Request, progress: Progress, checks: Collection[str] | None
) -> Iterator[PortReport]:
    """The ports one after the other, until one fails; the others are not judged."""
    failed = False
    for spec in asked.specs:
        if failed:
            where = asked.options.dtype or "float32", asked.options.device, "checkpoint"
            yield PortReport(spec, *where, error=f"{spec}: not judged, {STOPPED}")
            continue
        shared = SharedWeights(asked.checkpoint.tensors, record=False)
        report = judge_one(asked, spec, shared, progress, checks, fail_fast=True)
        failed = report.verdict is Verdict.REFUTED
        yield report


def _together(
    asked: Request, progress: Progress, checks: Collection[str] | None, jobs: int
) -> Iterator[PortReport]:
    """The ports side by side. One whose process is lost takes others with it, which are judged
    again, each in a process of its own."""
    processes = min(jobs, len(asked.specs))
    progress.port(f"{len(asked.specs)} ports, {processes} at a time", len(asked.specs))
    with pool(processes) as executor:
        judged = ports_beside(executor, asked, jobs // processes, checks)
        for future in as_completed(judged):
            progress.step(future.result().name if future.exception() is None else "")
    for spec, future in zip(asked.specs, judged, strict=True):
        broken = isinstance(future.exception(), BrokenProcessPool)
        report = _once_more(asked, spec, checks) if broken else future.result()
        progress.done(report)
        yield report


def _in_cluster(
    asked: Request, progress: Progress, checks: Collection[str] | None, address: str
) -> Iterator[PortReport]:
    """The ports on the workers of a cluster, which see the same files."""
    if asked.held:
        raise UsageError("--scheduler: a port that is in memory cannot be sent to a cluster")
    progress.port(f"{len(asked.specs)} ports", len(asked.specs))
    with scheduler(address) as executor:
        judged = [
            executor.submit(errand, judge_alone, task_of(asked, spec, checks), 1)
            for spec in asked.specs
        ]
        for spec, future in zip(asked.specs, judged, strict=True):
            try:
                report = future.result()
            except Lost as error:
                report = lost(spec, asked.options, error)
            progress.step(report.name)
            progress.done(report)
            yield report


def _once_more(asked: Request, spec: str, checks: Collection[str] | None) -> PortReport:
    with pool(1) as executor:
        try:
            return executor.submit(judge_alone, task_of(asked, spec, checks), 1).result()
        except BrokenProcessPool as error:
            return lost(spec, asked.options, error)


def environment() -> dict[str, Any]:
    """The date, versions, platform, processor, laws and numerics; no framework is imported for
    it."""
    versions = {"gpt-verify": __version__, "python": platform.python_version()}
    for package in (
        "numpy",
        "torch",
        "transformers",
        "tensorflow",
        "tensorflow-cpu",
        "safetensors",
        "tokenizers",
        "onnxruntime",
        "ctranslate2",
        "transformer-lens",
        "keras-hub",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "made_with": made_with(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["cuda_device"] = torch.cuda.get_device_name()
    return found


def described(inputs: list[Input], options: Options) -> dict[str, Any]:
    """The inputs, as the report describes them."""
    found: dict[str, Any] = {
        "seed": options.seed,
        "shapes": {i.name: list(i.tokens.shape) for i in inputs},
        "tokens_in_all": sum(i.tokens.size for i in inputs),
    }
    if options.text is not None:
        found["text"] = options.text
    if options.tokens is not None:
        found["tokens"] = list(options.tokens)
    if options.lengths is not None:
        found["lengths"] = list(options.lengths)
    return found


def sha256(files: Sequence[Path]) -> dict[str, str]:
    """File name → the digest of its content."""
    found = {}
    for path in files:
        size_of(path)  # nothing but a regular file is opened
        try:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise refusal(path, f"cannot be read: {error.strerror}") from None
    return found
