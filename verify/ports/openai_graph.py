"""The published graph in a TensorFlow process, as far as a port can show what is inside.

The same for the port itself, for its float64 copy and for a copy of it: each is a view of one
model in one process. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import PortError
from gpt_verify.port import Dtype, End, Floats, GradientSink, Parameter, Port, Tokens, Visit
from gpt_verify.process.prefetch import prefetch
from gpt_verify.process.wire import Array, Frame
from gpt_verify.process.worker import Worker

#: Sites that wait to be looked at: about one block, so that memory is still a layer's.
PREFETCHED_SITES = 12


class _Cache:
    """Stands for keys and values in the TensorFlow process.

    It may be forgotten at any moment, in the middle of an answer too, so that the process is told
    with the next request only.
    """

    def __init__(self, number: int, forgotten: deque[int]) -> None:
        self.number = number
        weakref.finalize(self, forgotten.append, number).atexit = False


class OpenAIGraph(Port):
    """One model in a TensorFlow process, computing in one precision.

    Args:
        worker: the process.
        model: which of the models in it.
        dtype: ``float32``, or ``float64`` where each variable is cast as it is used.
        device: where it computes.
    """

    name = "openai-tf"

    def __init__(self, worker: Worker, model: str, dtype: Dtype, device: str) -> None:
        self._worker, self._model = worker, model
        self.dtype, self.device = dtype, device
        self._forgotten: deque[int] = deque()

    @contextmanager
    def float64(self) -> Iterator[Port]:
        """The same graph computing in float64, each variable cast where it is used."""
        float64_copy = OpenAIGraph(self._worker, self._model, "float64", self.device)
        float64_copy._forgotten = self._forgotten
        yield float64_copy

    def logits(self, tokens: Tokens) -> Floats:
        """One run of the whole graph.

        Args:
            tokens: int[B, T].

        Returns:
            float[B, T, V] in the port's dtype.

        Raises:
            PortError: an id outside the vocabulary, more than n_ctx tokens, or TensorFlow failed.
        """
        (value,) = self._call("logits", int32(tokens), dtype=self.dtype).arrays
        return value

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        """Run the graph block by block and show every site; the same bits as `logits`.

        Raises:
            PortError: as `logits`.
        """
        frames = self._stream("activations", int32(tokens), dtype=self.dtype)
        # TensorFlow computes the next block while this one is being compared.
        for frame in prefetch(frames, PREFETCHED_SITES):
            (value,) = frame.arrays
            visit(frame.fields["site"], value)
        return value

    def parameters(self) -> Iterator[Parameter]:
        """Every variable of the graph, with the shape ``[1, in, out]`` for matrices.

        Gather and last product read the same variable, so that there is one wte.
        """
        rows = self._call("variables").fields["variables"]
        for name, variable, shape in rows:
            yield Parameter(
                name=variable,
                shape=tuple(shape),
                read=partial(self._read, name),
                storage=(self._model, variable),
                implies=name,
                write=partial(self._write, name, tuple(shape)),
            )

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        """Mean cross entropy in nats, by TensorFlow's operation, in the port's dtype.

        Args:
            tokens: int[B, T].
            labels: int[B, T], the tokens themselves or IGNORED; the first of a row is not looked
                at.

        Returns:
            NaN where nothing is to be predicted.

        Raises:
            PortError: as `logits`; labels of another shape, or that are no tokens.
        """
        tokens, labels = int32(tokens), int32(labels)
        if labels.shape != tokens.shape:
            found = f"int{list(labels.shape)} for int{list(tokens.shape)}"
            raise PortError(f"{self.name}: a label for each token, not {found}")
        return float(self._call("loss", tokens, labels, dtype=self.dtype).arrays[0])

    def gradients(self, tokens: Tokens, sink: GradientSink) -> bool:
        """Derivatives of the loss by ``tf.gradients``, in the port's dtype and the stored shapes.

        Args:
            tokens: int[B, T], T ≥ 2.
            sink: takes them one by one, as they come from the TensorFlow process.

        Raises:
            PortError: as `logits`; sequences that predict nothing.
        """
        tokens = _predicting(tokens, self.name)
        sink.restart()
        ends = {"wte_input": End.LOOKUP, "wte_output": End.HEAD}
        for frame in self._stream("gradients", tokens, dtype=self.dtype):
            name = frame.fields["name"]
            sink.add(ends.get(name, name), frame.arrays[0])
        return True

    def input_gradients(self, tokens: Tokens, position: int) -> Floats:
        """Derivative of the loss at one position with respect to each sum of embeddings.

        Args:
            tokens: int[1, T].
            position: of the logits, less than T - 1: the token after it is predicted.

        Returns:
            float[T, D] in the port's dtype.

        Raises:
            PortError: as `logits`; more than one sequence, or no such prediction.
        """
        tokens = _predicting(tokens, self.name)
        if len(tokens) != 1 or not 0 <= position < tokens.shape[1] - 1:
            found = f"position {position} of int{list(tokens.shape)}"
            raise PortError(f"{self.name}: {found} is no prediction of one sequence")
        frame = self._call("input_gradients", tokens, position=position, dtype=self.dtype)
        return frame.arrays[0]

    def step(self, tokens: Tokens, cache: _Cache | None) -> tuple[Floats, _Cache]:
        """Logits of tokens that follow those in the cache, and the cache with them added.

        Keys and values stay in the TensorFlow process. A cache that is handed in is used up, also
        where the step fails; one that is forgotten is released there with the next request.

        Args:
            tokens: int[B, S].
            cache: of an earlier step of this very port; None at the start.

        Returns:
            float[B, S, V] in the port's dtype.

        Raises:
            PortError: as `logits`; a cache that was used already, or of another port.
        """
        number = None if cache is None else cache.number
        frame = self._call("step", int32(tokens), cache=number, dtype=self.dtype)
        return frame.arrays[0], _Cache(frame.fields["cache"], self._forgotten)

    def tying(self) -> tuple[bool, str]:
        """Whether one variable feeds both the gather and the last product of the graph that is run,
        and which operations those are."""
        fields = self._call("tying", dtype=self.dtype).fields
        return fields["tied"], fields["description"]

    def training(self) -> list[str]:
        """Operations of the graph that is run that draw random numbers, as dropout does.

        The published graph has none: it has no mode, and was trained with another program. It is
        the graph that is looked at, not this sentence.
        """
        names: list[str] = self._call("training", dtype=self.dtype).fields["drawn"]
        return names

    def constants(self) -> list[float]:
        """The numbers that are written into the graph that is run, such as ε and what is masked
        with."""
        values: list[float] = self._call("constants", dtype=self.dtype).fields["constants"]
        return values

    def _call(self, command: str, *arrays: Array, **fields: Any) -> Frame:
        self._forget()
        return self._worker.call(command, *arrays, model=self._model, **fields)

    def _stream(self, command: str, *arrays: Array, **fields: Any) -> Iterator[Frame]:
        self._forget()
        return self._worker.stream(command, *arrays, model=self._model, **fields)

    def _forget(self) -> None:
        """Release the caches that nobody holds any more."""
        if self._forgotten:
            numbers = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
            self._worker.call("forget", caches=numbers, model=self._model)

    def _read(self, name: str) -> NDArray[np.float32]:
        value: NDArray[Any] = self._call("variable", name=name).arrays[0]
        return value

    def _write(self, name: str, shape: tuple[int, ...], value: Floats) -> None:
        """Assign a variable, which is float32 in every precision.

        Raises:
            PortError: a value of another shape.
        """
        value = np.asarray(value)
        if value.shape != shape:
            found = f"{value.dtype}{list(value.shape)}"
            raise PortError(f"{self.name}: {name} is float32{list(shape)}; {found} was written")
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            self._call("assign", value.astype(np.float32), name=name)


def _predicting(tokens: Tokens, name: str) -> NDArray[np.int32]:
    narrow = int32(tokens)
    if not narrow[:, 1:].size:
        raise PortError(f"{name}: int{list(narrow.shape)} predicts nothing, and has no loss")
    return narrow


def int32(tokens: Tokens) -> NDArray[np.int32]:
    """The placeholder's type; an id that does not fit must not come back as another one."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise PortError(f"openai-tf takes int[B, T], not {tokens.dtype}{list(tokens.shape)}")
    narrow = tokens.astype(np.int32)
    if not np.array_equal(narrow, tokens):
        raise PortError("openai-tf takes token ids that fit into 32 bits")
    return narrow
