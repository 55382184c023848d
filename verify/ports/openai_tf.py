"""OpenAI's own graph as a port: the published architecture, run by TensorFlow.

Built anew from the published code, restored from the checkpoint's files by TensorFlow's Saver, and
run in a process of its own. Nothing here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.files import size_of
from gpt_verify.checkpoint.tensorflow import as_stored
from gpt_verify.engines.tensorflow import ORIGINAL, start
from gpt_verify.errors import PortError
from gpt_verify.port import Floats, Port, Tokens
from gpt_verify.ports.openai_graph import OpenAIGraph, int32
from gpt_verify.process.scratch import scratch
from gpt_verify.process.worker import Worker
from gpt_verify.reference import tensor_table

#: Of the one step of training: enough to move every variable that the loss depends on.
_STEP_RATE, _STEP_LENGTH = 0.1, 8


@dataclass(frozen=True)
class MetaGraph:
    """The graph in a checkpoint's ``.meta``, as it was found.

    Attributes:
        found: it holds a forward pass: fed integers gather rows of ``model/wte``, and what comes
            of that is multiplied by a matrix of the same two sizes.
        tied: that matrix is the same variable; None where there is no forward pass.
        description: one line: which operations, or why there is none or it was not run.
        operations: type of operation → how many the whole graph has.
        logits: computed by that graph, float[B, T, V]; None where it was not run.
    """

    found: bool
    description: str
    tied: bool | None = None
    operations: dict[str, int] = field(default_factory=dict)
    logits: Floats | None = None


class OpenAITensorFlow(OpenAIGraph):
    """The published graph in a TensorFlow process. Close it, or the process stays.

    Args:
        checkpoint: OpenAI's files are restored by the Saver; the tensors of a Hugging Face
            directory are assigned one by one.
        device: ``cpu``, or ``cuda`` where TensorFlow may use the GPU.
        timeout: seconds that one answer may take.
        worker: a running TensorFlow process to build the model in, for one such port at a time.
            It runs on when the port is closed.

    Raises:
        MissingDependency: TensorFlow is not installed.
        PortError: the checkpoint cannot be restored, or TensorFlow sees no GPU to compute on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        timeout: float = 1800.0,
        worker: Worker | None = None,
    ) -> None:
        self._prefix, self._config = _prefix(checkpoint), checkpoint.config
        self._lent = worker is not None
        running = worker or start(device=device, timeout=timeout)
        super().__init__(running, ORIGINAL, "float32", device)
        try:
            if device != "cpu" and not self._worker.call("gpus").fields["gpus"]:
                raise PortError(f"{self.name}: TensorFlow sees no GPU")
            self._call("build", config=checkpoint.config.as_dict())
            if self._prefix is not None:
                self._call("restore", prefix=str(self._prefix))
            else:
                for spec in tensor_table(checkpoint.config).values():
                    value = as_stored(checkpoint.tensors[spec.name], spec)
                    self._call("assign", value, name=spec.name)
        except BaseException:
            self.close()
            raise

    def copies(self) -> Iterator[tuple[str, Port | str]]:
        """Copies in further graphs and sessions of the same process, one at a time.

        By the Saver into a graph that is built anew, by the Saver into the graph that it wrote, and
        after one step of gradient descent.
        """
        ways = {
            "Saver": self._saved,
            "Saver and import_meta_graph": self._imported,
            "one optimiser step": self._stepped,
        }
        for how, make in ways.items():
            copy = _Copy(self._worker, "copy", "float32", self.device)
            try:
                try:
                    make(copy)
                except (PortError, OSError) as error:
                    yield how, str(error)
                    continue
                yield how, copy
            finally:
                copy.close()

    def _saved(self, copy: _Copy) -> None:
        with scratch() as directory:
            prefix = f"{directory}/model.ckpt"
            self._call("save", prefix=prefix)
            copy._call("build", config=self._config.as_dict())
            copy._call("restore", prefix=prefix)

    def _imported(self, copy: _Copy) -> None:
        with scratch() as directory:
            prefix = f"{directory}/model.ckpt"
            self._call("save", prefix=prefix)
            copy._call("import_graph", prefix=prefix)

    def _stepped(self, copy: _Copy) -> None:
        length = min(_STEP_LENGTH, self._config.n_ctx)
        if length < 2:
            raise PortError("one position predicts nothing")
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, self._config.n_vocab, (1, length), dtype=np.int32)
        copy._call("build", config=self._config.as_dict())
        copy._call("copy_variables")
        copy._call("descend", tokens, rate=_STEP_RATE)

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
            self._call("release")
        return _meta_graph(self._worker, self._prefix, tokens)

    def close(self) -> None:
        """End the TensorFlow process, or give up the model in one that was lent. May be called
        again."""
        if self._lent:
            with suppress(PortError):  # the process may have died, which others have reported
                self._call("release")
        else:
            self._worker.close()


class _Copy(OpenAIGraph):
    """Another model in the same process."""

    def close(self) -> None:
        """Release it. May be called again."""
        self._call("release")


def openai_tf(
    checkpoint: Checkpoint, device: str = "cpu", worker: Worker | None = None
) -> OpenAITensorFlow:
    """The factory of the built-in port ``openai-tf``; see `OpenAITensorFlow`."""
    return OpenAITensorFlow(checkpoint, device=device, worker=worker)


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
        return MetaGraph(False, "the checkpoint has no .meta file that restores its variables")
    size_of(Path(f"{prefix}.meta"))  # a pipe is not opened, by TensorFlow neither
    frame = worker.call("meta", int32(tokens), prefix=str(prefix))
    return MetaGraph(**frame.fields, logits=frame.arrays[0] if frame.arrays else None)


def _prefix(checkpoint: Checkpoint) -> Path | None:
    """What the names of OpenAI's files have in common; None where its graph cannot restore them."""
    index = [file for file in checkpoint.files if file.suffix == ".index"]
    if checkpoint.format != "openai" or not checkpoint.restorable:
        return None
    if len(index) != 1:
        raise PortError(f"{checkpoint.path}: {len(index)} index files; openai-tf needs one")
    return index[0].absolute().with_suffix("")
