"""An ONNX file as a port: one that is given, or the export of transformers' model."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.errors import MissingDependency, install
from gpt_verify.matching.match import Matching, match
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Floats, Parameter, Port, Tokens, Visit
from gpt_verify.ports.engine import run_child
from gpt_verify.process.scratch import scratch
from gpt_verify.process.worker import Worker

#: Seconds that one answer may take.
_TIMEOUT = 1800.0


class OnnxPort(Port):
    """A file in ONNX Runtime, in a process of its own. Close it, or the process stays.

    Its sites are added as further outputs. The runtime fuses what nobody looks at, so the logits of
    such a run differ from those without by rounding: the former are judged as a site, the latter
    end to end.

    Args:
        file: takes ids [B, T] and returns logits [B, T, V] first.
        checkpoint: what is judged against.
        name: as reports print it.
        weights_from: as in ``Port``.

    Raises:
        MissingDependency: onnx or onnxruntime is not installed.
        PortError: it cannot be loaded, or takes something else.
    """

    def __init__(self, file: Path, checkpoint: Checkpoint, name: str, weights_from: str) -> None:
        for package in ("onnx", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise MissingDependency(f"{package} is not installed: {install('onnx')}")
        self.name, self.weights_from = name, weights_from
        self._checkpoint = checkpoint
        self._worker = Worker("gpt_verify.engines.onnx_worker", label=name, timeout=_TIMEOUT)
        try:
            opened = self._worker.call("open", path=os.fspath(file)).fields
        except BaseException:
            self._worker.close()
            raise
        self._shapes: dict[str, list[int]] = opened["parameters"]
        if self._holds_the_transpose():
            self.waivers = {
                "tying.storage": "the exporter has worked out the transpose of the table, and the "
                "file holds both"
            }
        self.remarks = (f"ONNX opset {opened['opset']}, written by {opened['producer'] or '?'}",)

    def logits(self, tokens: Tokens) -> Floats:
        (value,) = self._worker.call("logits", np.asarray(tokens, np.int64)).arrays
        return value

    def parameters(self) -> Iterator[Parameter]:
        for name, shape in self._shapes.items():
            yield Parameter(name, tuple(shape), lambda name=name: self._read(name), name)  # type: ignore[misc]

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        placed = {p.parameter: p.tensor for p in self._matching.placements if p.part is None}
        batch, length = tokens.shape
        for item in self._worker.stream(
            "activations",
            np.asarray(tokens, np.int64),
            placed=placed,
            n_layer=self._checkpoint.config.n_layer,
        ):
            (value,) = item.arrays
            site = item.fields["site"]
            if value.ndim == 2:  # the exporter joins batch and length before a product
                value = value.reshape(batch, length, -1)
            visit(site, value)
        return self.logits(tokens)

    def close(self) -> None:
        self._worker.close()

    def _holds_the_transpose(self) -> bool:
        """Whether one table stands in the file twice, as it is and transposed. Exporters work out
        what they can beforehand; that is a copy, and not another matrix."""
        config = self._checkpoint.config
        shape = [config.n_vocab, config.n_embd]
        tables = [self._read(n) for n, s in self._shapes.items() if s == shape]
        turned = [self._read(n) for n, s in self._shapes.items() if s == shape[::-1]]
        return any(np.array_equal(a, b.T) for a in tables for b in turned)

    def _read(self, name: str) -> Floats:
        (value,) = self._worker.call("parameter", name=name).arrays
        return value

    @cached_property
    def _matching(self) -> Matching:
        weights = DeclaredWeights(self._checkpoint.tensors, PRECISIONS[self.dtype])
        return match(list(self.parameters()), self._checkpoint.config, weights)


def exported(checkpoint: Checkpoint) -> Port:
    """What torch's exporter makes of transformers' model.

    Raises:
        MissingDependency: torch, transformers, onnxscript or onnxruntime is not installed.
        PortError: the export fails.
    """
    with scratch() as directory:
        write_huggingface(directory, checkpoint.config, checkpoint.tensors)
        file = Path(directory, "model.onnx")
        run_child("onnx", "gpt_verify.engines.onnx_export", directory, os.fspath(file))
        return OnnxPort(file, checkpoint, "onnx", "checkpoint")
