"""ONNX Runtime, asked through pipes (``gpt_verify.process.worker``). Run, not imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from gpt_verify.engines.onnx_graph import find_sites
from gpt_verify.errors import PortError
from gpt_verify.process.wire import Array
from gpt_verify.process.worker import Item, serve

#: How values of other formats travel: widened, which is exact.
_WIDER = {"float16": np.float32, "bfloat16": np.float32}


class _Session:
    """One file, as it is and with its inner values as outputs."""

    def __init__(self) -> None:
        self._session: Any = None

    def open(self, path: str) -> Iterator[Item]:
        """What the file is: producer, opset, inputs and outputs; arrays come by name later."""
        try:
            self._model = onnx.load(path)
            self._session = _session(path)
        except Exception as e:  # onnx, protobuf and the runtime have classes of their own
            raise PortError(f"cannot be loaded: {' '.join(str(e).split())[:300]}") from None
        inputs = [i for i in self._session.get_inputs() if i.type.startswith("tensor(int")]
        if len(self._session.get_inputs()) != 1 or not inputs:
            names = ", ".join(f"{i.name} {i.type}" for i in self._session.get_inputs())
            raise PortError(f"takes {names}; should take one tensor of integers, the tokens")
        self._input = inputs[0]
        self._output = self._session.get_outputs()[0].name
        self._floats = {i.name: i for i in self._model.graph.initializer if _is_parameter(i)}
        opset = next(
            (o.version for o in self._model.opset_import if o.domain in ("", "ai.onnx")), 0
        )
        yield (
            {
                "producer": f"{self._model.producer_name} {self._model.producer_version}".strip(),
                "opset": opset,
                "parameters": {name: list(i.dims) for name, i in self._floats.items()},
            },
            (),
        )

    def parameter(self, name: str) -> Iterator[Item]:
        value = numpy_helper.to_array(self._floats[name])
        yield {}, (value.astype(_WIDER.get(str(value.dtype), value.dtype)),)

    def logits(self, tokens: Array) -> Iterator[Item]:
        (value,) = self._run(self._session, [self._output], tokens)
        yield {}, (value,)

    def activations(self, tokens: Array, placed: dict[str, str], n_layer: int) -> Iterator[Item]:
        """Every site that the graph shows, and then the logits of that run (site ``logits``)."""
        found = find_sites(self._model.graph, placed, n_layer)
        watched = onnx.ModelProto()
        watched.CopyFrom(self._model)
        known = {o.name for o in watched.graph.output}
        element = watched.graph.output[0].type.tensor_type.elem_type
        for name in dict.fromkeys(found.values()):
            if name not in known:
                watched.graph.output.append(onnx.helper.make_tensor_value_info(name, element, None))
        values = self._run(
            _session(watched.SerializeToString()), [*found.values(), self._output], tokens
        )
        for site, value in zip([*found, "logits"], values, strict=True):
            yield {"site": site}, (value,)

    def _run(self, session: Any, names: list[str], tokens: Array) -> list[Array]:
        kind = np.int32 if self._input.type == "tensor(int32)" else np.int64
        try:
            values = session.run(names, {self._input.name: tokens.astype(kind)})
        except Exception as e:
            raise PortError(" ".join(str(e).split())[:300]) from None
        return [value.astype(_WIDER.get(str(value.dtype), value.dtype)) for value in values]


def _session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _is_parameter(initializer: Any) -> bool:
    """A tensor of floats, and not a number that an operation needs."""
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    floats.add(onnx.TensorProto.DOUBLE)
    return initializer.data_type in floats and len(initializer.dims) > 0


if __name__ == "__main__":
    asked = _Session()
    serve(
        {
            "open": asked.open,
            "parameter": asked.parameter,
            "logits": asked.logits,
            "activations": asked.activations,
        }
    )
