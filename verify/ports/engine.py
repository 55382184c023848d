"""Engines that show nothing but logits, each in a process of its own (``verify/engines``)."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.vocabulary import files
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.errors import MissingDependency, PortError, install, shortened
from gpt_verify.port import Dtype, Floats, Port, Tokens
from gpt_verify.process.children import output_of
from gpt_verify.process.scratch import scratch
from gpt_verify.process.worker import Worker

#: Seconds that one answer may take.
_TIMEOUT = 1800.0


class EnginePort(Port):
    """A worker that answers ``open``, with a remark, and ``logits``. Close it, or it stays.

    Args:
        worker: a module of ``gpt_verify.engines``.
        name, dtype, device: as in ``Port``.
        opened: fields of ``open``.
        environment: additions to that of the process.
    """

    def __init__(
        self,
        worker: str,
        name: str,
        dtype: Dtype,
        device: str,
        opened: dict[str, Any],
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name, self.dtype, self.device = name, dtype, device
        self._worker = Worker(
            f"gpt_verify.engines.{worker}",
            label=name,
            timeout=_TIMEOUT,
            environment=environment,
        )
        try:
            self.remarks = (self._worker.call("open", **opened).fields["remark"],)
        except BaseException:
            self._worker.close()
            raise

    def logits(self, tokens: Tokens) -> Floats:
        (value,) = self._worker.call("logits", np.asarray(tokens, np.int64)).arrays
        return value

    def close(self) -> None:
        self._worker.close()


def ctranslate2(checkpoint: Checkpoint, dtype: Dtype | None = None, device: str = "cpu") -> Port:
    """CTranslate2 with transformers' model, converted by its own converter.

    Raises:
        MissingDependency: it, torch or transformers is not installed.
        PortError: the conversion fails.
    """
    _need("ctranslate2", "ctranslate2", "torch", "transformers")
    if not checkpoint.has_vocabulary:
        raise PortError("ctranslate2: its converter needs a vocabulary, and there is none")
    with scratch() as directory:
        source, made = Path(directory, "huggingface"), Path(directory, "ctranslate2")
        _write(checkpoint, source)
        words = ("--model", os.fspath(source), "--output_dir", os.fspath(made))
        run_child("ctranslate2", "ctranslate2.converters.transformers", *words)
        return EnginePort(
            "ctranslate2_worker",
            "ctranslate2",
            dtype or "float32",
            device,
            {"path": os.fspath(made), "compute_type": dtype or "float32", "device": device},
        )


def keras_hub(checkpoint: Checkpoint, dtype: Dtype | None = None, device: str = "cpu") -> Port:
    """KerasHub's GPT-2 on TensorFlow, loaded by its own converter.

    Raises:
        MissingDependency: KerasHub is not installed.
        PortError: it cannot load the checkpoint.
    """
    _need("keras-hub", "keras_hub")
    with scratch() as directory:
        _write(checkpoint, Path(directory))
        return EnginePort(
            "keras_worker",
            "keras-hub",
            dtype or "float32",
            device,
            {"path": directory, "dtype": dtype or "float32"},
            environment={"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )


def run_child(name: str, module: str, *words: str) -> None:
    """``python -m module words…``; PortError with its last line where it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        command = [sys.executable, "-m", module, *words]
        status, _, last = output_of(command, _TIMEOUT, environment)
    except OSError as e:  # TimeoutError is one
        raise PortError(f"{name}: {module}: {shortened(e)}") from None
    if status:
        said = shortened(last) or "nothing"
        raise PortError(f"{name}: {module} failed, and last said: {said}")


def _write(checkpoint: Checkpoint, directory: Path) -> None:
    with files(checkpoint) as both:
        write_huggingface(directory, checkpoint.config, checkpoint.tensors, *(both or ()))


def _need(extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"{package} is not installed: {install(extra)}")
