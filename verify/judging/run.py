"""The main job: one checkpoint, some ports, every law, one report."""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from gpt_verify import __version__
from gpt_verify.checkpoint.files import refusal, size_of
from gpt_verify.engines.tensorflow import started_early
from gpt_verify.findings import PortReport, Report
from gpt_verify.inputs import Input
from gpt_verify.judging.judge import judge
from gpt_verify.judging.made_with import made_with
from gpt_verify.judging.options import Options as Options
from gpt_verify.judging.options import chosen_inputs as chosen_inputs
from gpt_verify.judging.requirements import requirements
from gpt_verify.judging.selection import Request, request
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.process.processor import processor
from gpt_verify.reference.weights import parameter_count

#: Checks for which the sites of a port are compared.
SITED = ("architecture", "activations.local", "activations.cascaded")


class Progress(Protocol):
    """Told how far a run is."""

    def port(self, name: str, steps: int) -> None:
        """A port starts, with so many steps to come."""

    def step(self, what: str) -> None:
        """One step is done."""

    def done(self, report: PortReport) -> None:
        """A port is judged."""


class Silent:
    """Progress for nobody."""

    def port(self, name: str, steps: int) -> None: ...

    def step(self, what: str) -> None: ...

    def done(self, report: PortReport) -> None: ...


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
    asked: Request, progress: Progress | None = None, checks: Collection[str] | None = None
) -> Report:
    """Judge the ports of a request; see ``run``.

    Args:
        asked: the request.
        progress: told how far the run is.
        checks: ids of those that are asked for; all where None. Others may be left out.
    """
    opened, options, specs = asked.checkpoint, asked.options, asked.specs
    progress = progress or Silent()
    inputs, config = chosen_inputs(opened, options), opened.config
    required = requirements(options.require)
    shared = SharedWeights(opened.tensors, record=len(specs) > 1)
    with started_early("openai-tf" in specs[1:]), ThreadPoolExecutor(1) as pool:
        # Hashing leaves the interpreter free, and is done while the ports run.
        hashes: Future[dict[str, str]] = pool.submit(sha256, opened.files)
        reports = []
        for spec in specs:
            judged = judge(
                spec,
                opened,
                inputs,
                options.dtype,
                options.device,
                progress,
                options.seed,
                shared=shared,
                build=asked.builder(spec),
                laws=checks,
                sited=checks is None or any(law in SITED for law in checks),
                waivers=options.waivers.get(spec, {}),
            )
            missing = (needed.unmet(judged.findings) for needed in required)
            reports.append(replace(judged, unmet=tuple(filter(None, missing))))
            progress.done(reports[-1])
            gc.collect()  # modules hold cycles, and the next port may need the memory
        files = hashes.result()
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
        ports=tuple(reports),
        inputs=described(inputs, options),
        environment=environment(),
        repeat=asked.repeat(),
    )


def environment() -> dict[str, Any]:
    """Versions, platform, processor, laws and numerics; no framework is imported for it."""
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
