"""OpenAI's own graph as a port: the published architecture, run by TensorFlow.

Built anew from the published code, restored from the checkpoint's files by TensorFlow's Saver, and
run in a process of its own. Nothing here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import tensor_table
from verify.ahead import read_ahead
from verify.checkpoint import Checkpoint
from verify.checkpoint.tensorflow import as_stored
from verify.errors import PortError
from verify.ports.port import Dtype, Floats, Parameter, Port, Tokens, Visit
from verify.tensorflow import start
from verify.worker import Worker

#: Sites that wait to be looked at: about one block, so that memory is still a layer's.
SITES_AHEAD = 12


@dataclass(frozen=True)
class MetaGraph:
    """What the graph in a checkpoint's ``.meta`` is.

    Attributes:
        found: it holds a forward pass: fed integers gather rows of ``model/wte``, and what comes
            of that is multiplied by the same variable.
        description: one line: which operations, or why there is none or it was not run.
        operations: type of operation → how many the whole graph has.
        logits: computed by that graph, float[B, T, V]; None where it was not run.
    """

    found: bool
    description: str
    operations: dict[str, int] = field(default_factory=dict)
    logits: Floats | None = None


class OpenAITensorFlow(Port):
    """The published graph in a TensorFlow process. Close it, or the process stays.

    Args:
        checkpoint: OpenAI's files are restored by the Saver; the tensors of a Hugging Face
            directory are assigned one by one.
        device: ``cpu``, or ``cuda`` where TensorFlow may use the GPU.
        timeout: seconds that one answer may take.

    Raises:
        MissingDependency: TensorFlow is not installed.
        PortError: the checkpoint cannot be restored.
    """

    name = "openai-tf"

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "cpu", timeout: float = 1800.0
    ) -> None:
        self.device = device
        self._prefix = _prefix(checkpoint)
        self._worker: Worker = start(device=device, timeout=timeout)
        try:
            self._worker.call("build", config=checkpoint.config.as_dict())
            if self._prefix is not None:
                self._worker.call("restore", prefix=str(self._prefix))
            else:
                for spec in tensor_table(checkpoint.config).values():
                    value = as_stored(checkpoint.tensors[spec.name], spec)
                    self._worker.call("assign", value, name=spec.name)
        except BaseException:
            self._worker.close()
            raise

    def logits(self, tokens: Tokens) -> Floats:
        """One run of the whole graph.

        Args:
            tokens: int[B, T].

        Returns:
            float[B, T, V] in the port's dtype.

        Raises:
            PortError: an id outside the vocabulary, more than n_ctx tokens, or TensorFlow failed.
        """
        (value,) = self._worker.call("logits", _int32(tokens), dtype=self.dtype).arrays
        return value

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        """Run the graph block by block and show every site; the same bits as `logits`.

        Raises:
            PortError: as `logits`.
        """
        frames = self._worker.stream("activations", _int32(tokens), dtype=self.dtype)
        # TensorFlow computes the next block while this one is being compared.
        for frame in read_ahead(frames, SITES_AHEAD):
            (value,) = frame.arrays
            visit(frame.fields["site"], value)
        return value

    def parameters(self) -> Iterator[Parameter]:
        """Every variable of the graph, with the shape ``[1, in, out]`` for matrices.

        Gather and last product read the same variable, so that there is one wte.
        """
        rows = self._worker.call("variables").fields["variables"]
        for name, variable, shape in rows:
            yield Parameter(
                name=variable,
                shape=tuple(shape),
                read=partial(self._read, name),
                storage=variable,
                implies=name,
            )

    @contextmanager
    def float64(self) -> Iterator[Port]:
        """The same graph computing in float64, each variable cast where it is used."""
        yield _Twin(self._worker, self.device, self._prefix)

    def tying(self) -> tuple[bool, str]:
        """Whether one variable feeds both the gather and the last product of the graph that is run,
        and which operations those are."""
        fields = self._worker.call("tying").fields
        return fields["tied"], fields["description"]

    def meta_graph(self, tokens: Tokens, keep: bool = False) -> MetaGraph:
        """Examine the graph that came with the checkpoint in ``.meta``, and compute its logits.

        It is restored from the checkpoint's files like ours, but is the graph of whoever wrote
        them. Only arithmetic is run; a graph that would do more is described and not run. Its
        variables are its own. Ours are given up first, and with them the use of this port, unless
        they are to be kept: then the process holds the model twice.

        Raises:
            PortError: TensorFlow failed while it ran the graph.
        """
        if not keep:
            self._worker.call("release")
        return _meta_graph(self._worker, self._prefix, tokens)

    def close(self) -> None:
        """End the TensorFlow process. May be called again."""
        self._worker.close()

    def _read(self, name: str) -> NDArray[np.float32]:
        value: NDArray[Any] = self._worker.call("variable", name=name).arrays[0]
        return value


class _Twin(OpenAITensorFlow):
    """Another precision of a port, in the same process and with the same variables."""

    dtype: Dtype = "float64"

    def __init__(self, worker: Worker, device: str, prefix: Path | None) -> None:
        self._worker, self.device, self._prefix = worker, device, prefix

    def close(self) -> None:
        """Nothing: the process belongs to the port that this one is a view of."""


def openai_tf(checkpoint: Checkpoint, device: str = "cpu") -> OpenAITensorFlow:
    """The factory of the built-in port ``openai-tf``; see `OpenAITensorFlow`."""
    return OpenAITensorFlow(checkpoint, device=device)


def meta_graph(checkpoint: Checkpoint, tokens: Tokens) -> MetaGraph:
    """`OpenAITensorFlow.meta_graph` in a process of its own, which ends with the answer.

    Raises:
        MissingDependency: TensorFlow is not installed.
        PortError: TensorFlow failed while it ran the graph.
    """
    with start() as worker:
        return _meta_graph(worker, _prefix(checkpoint), tokens)


def _meta_graph(worker: Worker, prefix: Path | None, tokens: Tokens) -> MetaGraph:
    if prefix is None or not Path(f"{prefix}.meta").exists():
        return MetaGraph(False, "the checkpoint has no .meta file")
    frame = worker.call("meta", _int32(tokens), prefix=str(prefix))
    return MetaGraph(**frame.fields, logits=frame.arrays[0] if frame.arrays else None)


def _prefix(checkpoint: Checkpoint) -> Path | None:
    """What the names of OpenAI's files have in common; None for a Hugging Face directory."""
    index = [file for file in checkpoint.files if file.suffix == ".index"]
    if checkpoint.format != "openai":
        return None
    if len(index) != 1:
        raise PortError(f"{checkpoint.path}: {len(index)} index files; openai-tf needs one")
    return index[0].absolute().with_suffix("")


def _int32(tokens: Tokens) -> NDArray[np.int32]:
    """The placeholder's type; an id that does not fit must not come back as another one."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise PortError(f"openai-tf takes int[B, T], not {tokens.dtype}{list(tokens.shape)}")
    narrow = tokens.astype(np.int32)
    if not np.array_equal(narrow, tokens):
        raise PortError("openai-tf takes token ids that fit into 32 bits")
    return narrow
