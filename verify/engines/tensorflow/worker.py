"""What the TensorFlow process can be asked to do; `gpt_verify.process.worker` carries the requests.

A model (`build`) has variables, which are filled from arrays (`assign`) or from checkpoint files
(`restore`). One process may hold several, each a graph and a session of its own, under names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from typing import Any

import numpy as np

from gpt_verify.engines.tensorflow import ORIGINAL
from gpt_verify.engines.tensorflow.messages import reason
from gpt_verify.errors import GptVerifyError, MissingDependency
from gpt_verify.process.wire import Array
from gpt_verify.process.worker import Item, one_line, serve
from gpt_verify.reference import Config

try:
    import tensorflow as tf
except ImportError as error:
    # Raised when something is asked: what is raised while a process starts reaches nobody.
    IMPORT_ERROR: str | None = one_line(error)
else:
    IMPORT_ERROR = None

Answer = Iterable[Item]


@dataclass
class _Model:
    """One graph with its session, and what was added to it for each precision."""

    published: Any
    caches: dict[int, Array] = field(default_factory=dict)
    _added: dict[tuple[str, str], Any] = field(default_factory=dict)

    def training(self, dtype: str) -> Any:
        from gpt_verify.engines.tensorflow.training import Training

        return self._add(Training, dtype)

    def decoder(self, dtype: str) -> Any:
        from gpt_verify.engines.tensorflow.cache import Decoder

        return self._add(Decoder, dtype)

    def _add(self, part: Callable[[Any, str], Any], dtype: str) -> Any:
        key = part.__name__, dtype
        if key not in self._added:
            self._added[key] = part(self.published, dtype)
        return self._added[key]


class _Models(dict[str, _Model]):
    """The models by name; a request for one that was not built is refused."""

    def __missing__(self, name: str) -> _Model:
        raise GptVerifyError("no model was built")


class Commands:
    """Each public method is a command; its arguments are the request's arrays, then its fields."""

    def __init__(self) -> None:
        self._models = _Models()
        self._numbers = count(1)
        self._readers: dict[str, Any] = {}

    def gpus(self) -> Answer:
        """Names of the GPUs that TensorFlow can use; from now on they compute float32 as such."""
        tf.config.experimental.enable_tensor_float_32_execution(False)
        found = [device.name for device in tf.config.list_physical_devices("GPU")]
        return [({"gpus": found}, [])]

    def build(self, config: dict[str, int], model: str = ORIGINAL) -> None:
        """Make the published graph, its variables still without values."""
        from gpt_verify.engines.tensorflow.graph import Published

        self._models[model] = _Model(Published(Config.from_mapping(config)))

    def assign(self, value: Array, name: str, model: str = ORIGINAL) -> None:
        """Give one variable its value, in the stored shape."""
        self._model(model).assign(name, value)

    def save(self, prefix: str, model: str = ORIGINAL) -> None:
        """Write the checkpoint files and ``.meta`` with the Saver."""
        self._model(model).save(prefix)

    def restore(self, prefix: str, model: str = ORIGINAL) -> None:
        """Fill the variables from checkpoint files with the Saver."""
        self._model(model).restore(prefix)

    def import_graph(self, prefix: str, model: str) -> None:
        """Make a model of the graph in ``prefix.meta`` that `save` wrote, and fill its variables.

        The other way of restoring: nothing of the graph is built by our code.
        """
        from gpt_verify.engines.tensorflow.graph import Imported

        self._models[model] = _Model(Imported(prefix, self._model(ORIGINAL)))

    def copy_variables(self, model: str) -> None:
        """Give every variable of a model the value that it has in the original."""
        original = self._model(ORIGINAL)
        for name, variable in original.variables.items():
            self._model(model).assign(name, original.session.run(variable))

    def descend(self, tokens: Array, rate: float, model: str = ORIGINAL) -> None:
        """One step of gradient descent on the loss of these tokens."""
        self._models[model].training("float32").descend(tokens, rate)

    def variables(self, model: str = ORIGINAL) -> Answer:
        """Name and shape of every variable: checkpoint name, variable's name, shape."""
        variables = self._model(model).variables.items()
        rows = [[n, v.op.name, v.shape.as_list()] for n, v in variables]
        return [({"variables": rows}, [])]

    def variable(self, name: str, model: str = ORIGINAL) -> Answer:
        """The value that the graph computes with."""
        published = self._model(model)
        return [({}, [published.session.run(published.variables[name])])]

    def logits(self, tokens: Array, dtype: str, model: str = ORIGINAL) -> Answer:
        """The whole graph in one run."""
        return [({}, [self._model(model).logits(tokens, dtype)])]

    def activations(self, tokens: Array, dtype: str, model: str = ORIGINAL) -> Answer:
        """Every site in order, one item each, as it is computed."""
        for site, value in self._model(model).activations(tokens, dtype):
            yield {"site": site}, [value]

    def tying(self, dtype: str, model: str = ORIGINAL) -> Answer:
        """How the graph that is run uses wte."""
        from gpt_verify.engines.tensorflow.meta import find_forward

        published = self._model(model)
        found = find_forward(published.graph, published.sites(dtype)["logits"])
        return [({"tied": found.tied is True, "description": found.description}, [])]

    def training(self, dtype: str, model: str = ORIGINAL) -> Answer:
        """The operations of the graph that is run that draw at random."""
        from gpt_verify.engines.tensorflow.meta import drawn

        return [({"drawn": drawn(self._model(model).sites(dtype)["logits"])}, [])]

    def constants(self, dtype: str, model: str = ORIGINAL) -> Answer:
        """The numbers that are written into the graph that is run."""
        from gpt_verify.engines.tensorflow.meta import constants

        return [({"constants": constants(self._model(model).sites(dtype)["logits"])}, [])]

    def loss(self, tokens: Array, labels: Array, dtype: str, model: str = ORIGINAL) -> Answer:
        """The mean cross entropy in nats.

        Args:
            tokens, labels: int[B, T].
            dtype: the precision of the graph.
            model: its name.
        """
        return [({}, [self._models[model].training(dtype).loss(tokens, labels)])]

    def gradients(self, tokens: Array, dtype: str, model: str = ORIGINAL) -> Answer:
        """Every derivative of the loss, one item each; computed together, and dropped when sent."""
        for name, value in self._models[model].training(dtype).gradients(tokens):
            yield {"name": name}, [value]

    def input_gradients(
        self, tokens: Array, position: int, dtype: str, model: str = ORIGINAL
    ) -> Answer:
        """The derivative of the loss at one position with respect to every sum of embeddings.

        Args:
            tokens: int[B, T].
            position: of the prediction.
            dtype: the precision of the graph.
            model: its name.
        """
        return [({}, [self._models[model].training(dtype).input_gradients(tokens, position)])]

    def step(self, tokens: Array, cache: int | None, dtype: str, model: str = ORIGINAL) -> Answer:
        """Decode some tokens more; the cache that is handed in is given up.

        Args:
            tokens: int[B, n], those that follow what the cache has.
            cache: its number; None to begin anew.
            dtype: the precision of the graph.
            model: its name.
        """
        asked = self._models[model]
        past = None if cache is None else asked.caches.pop(cache, None)
        if cache is not None and (past is None or past.dtype != dtype):
            raise GptVerifyError("this cache was used already, or is another port's")
        value, present = asked.decoder(dtype).step(tokens, past)
        number = next(self._numbers)
        asked.caches[number] = present
        return [({"cache": number}, [value])]

    def forget(self, caches: list[int], model: str = ORIGINAL) -> None:
        """Give up caches that nobody will hand in; they may be gone already."""
        for cache in caches:
            self._models[model].caches.pop(cache, None)

    def held(self, model: str = ORIGINAL) -> Answer:
        """How many caches there are, and the bytes that they take."""
        sizes = [cache.nbytes for cache in self._models[model].caches.values()]
        return [({"caches": len(sizes), "bytes": sum(sizes)}, [])]

    def release(self, model: str = ORIGINAL) -> None:
        """Give up the model, its variables and its caches, if it is there."""
        if model in self._models:
            self._models.pop(model).published.session.close()

    def meta(self, tokens: Array, prefix: str) -> Answer:
        """Examine the graph in ``prefix.meta`` and run it."""
        from gpt_verify.engines.tensorflow.meta import run_forward

        forward, logits = run_forward(f"{prefix}.meta", prefix, tokens)
        fields = {
            "found": forward.logits is not None,
            "tied": forward.tied,
            "description": forward.description,
            "operations": forward.operations,
        }
        return [(fields, [] if logits is None else [logits])]

    def tensors(self, prefix: str) -> Answer:
        """Name, shape and TensorFlow's name of the dtype of everything in checkpoint files."""
        reader = self._reader(prefix)
        dtypes = reader.get_variable_to_dtype_map()
        shapes = reader.get_variable_to_shape_map()
        rows = [[name, shape, dtypes[name].name] for name, shape in sorted(shapes.items())]
        return [({"tensors": rows}, [])]

    def tensor(self, prefix: str, name: str) -> Answer:
        """One tensor of checkpoint files, as TensorFlow reads it."""
        return [({}, [np.asarray(self._reader(prefix).get_tensor(name))])]

    def _model(self, name: str) -> Any:
        return self._models[name].published

    def _reader(self, prefix: str) -> Any:
        if prefix not in self._readers:
            self._readers[prefix] = tf.train.load_checkpoint(prefix)
        return self._readers[prefix]


def _errors_in_one_line(command: Callable[..., Answer | None]) -> Callable[..., Answer]:
    """Say in one line what TensorFlow says in a page."""

    @wraps(command)
    def run(*arrays: Array, **fields: Any) -> Answer:
        if IMPORT_ERROR is not None:
            raise MissingDependency(f"TensorFlow cannot be imported: {IMPORT_ERROR}")
        where = f"{fields['prefix']}: " if "prefix" in fields else ""
        try:
            yield from command(*arrays, **fields) or ()
        except tf.errors.OpError as error:
            raise GptVerifyError(f"{where}TensorFlow: {reason(error.message)}") from None
        except (ValueError, IndexError) as error:  # from its reader of checkpoint files
            raise GptVerifyError(f"{where}{one_line(error)}") from None

    return run


if __name__ == "__main__":
    commands = Commands()
    serve(
        {
            name: _errors_in_one_line(getattr(commands, name))
            for name in vars(Commands)
            if not name.startswith("_")
        }
    )
