"""The main job: one checkpoint, some ports, every law, one report."""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from reference.config import Config
from reference.weights import parameter_count
from verify import __version__
from verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from verify.errors import UsageError
from verify.findings import PortReport, Report
from verify.inputs import Input, default_inputs, given, seeded
from verify.judge import judge
from verify.made_with import made_with
from verify.numerics.weights import SharedWeights
from verify.ports.registry import builtin_ports, expand
from verify.processor import processor
from verify.report.repeat import repeat_command
from verify.tensorflow import started_early


@dataclass(frozen=True)
class Options:
    """What to run the ports on, and how.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: the precision to load ports in; None leaves each as it declares itself.
        seed: of the inputs.
        lengths: seeded samples of these lengths, in place of the default inputs.
        tokens: one sequence of ids, in place of the default inputs.
        text: the same, encoded with the checkpoint's own vocabulary.
    """

    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    lengths: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    text: str | None = None


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
        UsageError: no port, or options that make no sense.
        A port that cannot be built or breaks is no exception: its report carries the error.
    """
    options, progress = options or Options(), progress or Silent()
    opened = open_checkpoint(checkpoint or default_checkpoint())
    inputs = chosen_inputs(opened, options)
    config = opened.config
    specs = expand(list(ports), config.architecture) if ports else installed(config)
    shared = SharedWeights(opened.tensors, record=len(specs) > 1)
    with started_early("openai-tf" in specs[1:]), ThreadPoolExecutor(1) as pool:
        # Hashing leaves the interpreter free, and is done while the ports run.
        hashes: Future[dict[str, str]] = pool.submit(sha256, opened.files)
        reports = []
        for spec in specs:
            reports.append(
                judge(
                    spec,
                    opened,
                    inputs,
                    options.dtype,
                    options.device,
                    progress,
                    options.seed,
                    shared=shared,
                )
            )
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
        },
        ports=tuple(reports),
        inputs=_described(inputs, options),
        environment=environment(),
        repeat=repeat_command(checkpoint, ports, options),
    )


def installed(config: Config) -> list[str]:
    """The built-in ports that are judged when none is named; UsageError where none can be."""
    infos = builtin_ports(config)
    names = [info.name for info in infos if info.missing is None and info.by_default]
    if not names:
        raise UsageError("no port to judge: " + "; ".join(f"{i.name}: {i.missing}" for i in infos))
    return names


def chosen_inputs(checkpoint: Checkpoint, options: Options) -> list[Input]:
    """The inputs that the options ask for; the default ones where they ask for none."""
    chosen = [x for x in ("lengths", "tokens", "text") if getattr(options, x) is not None]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other")
    if options.lengths is not None:
        return [seeded(checkpoint.config, length, options.seed) for length in options.lengths]
    if options.tokens is not None:
        return [given(checkpoint.config, options.tokens)]
    if options.text is not None:
        from verify.checkpoint.vocabulary import encode

        return [given(checkpoint.config, encode(checkpoint, options.text))]
    return default_inputs(checkpoint.config, options.seed)


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


def _described(inputs: list[Input], options: Options) -> dict[str, Any]:
    described: dict[str, Any] = {
        "seed": options.seed,
        "shapes": {i.name: list(i.tokens.shape) for i in inputs},
        "tokens_in_all": sum(i.tokens.size for i in inputs),
    }
    if options.text is not None:
        described["text"] = options.text
    if options.tokens is not None:
        described["tokens"] = list(options.tokens)
    if options.lengths is not None:
        described["lengths"] = list(options.lengths)
    return described


def sha256(files: Sequence[Path]) -> dict[str, str]:
    """File name → the digest of its content."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
