"""What the TensorFlow process can be asked to do; `verify.worker` carries the requests.

One process holds at most one model (`build`), whose variables are filled from arrays (`assign`) or
from checkpoint files (`restore`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import numpy as np

from reference import Config
from verify.errors import GptVerifyError, MissingDependency
from verify.frames import Array
from verify.worker import Item, one_line, serve

try:
    import tensorflow as tf
except ImportError as error:
    # Raised when something is asked: what is raised while a process starts reaches nobody.
    IMPORT_ERROR: str | None = one_line(error)
else:
    IMPORT_ERROR = None

Answer = Iterable[Item]


class Commands:
    """Each public method is a command; its arguments are the request's arrays, then its fields."""

    def __init__(self) -> None:
        self._published: Any = None
        self._readers: dict[str, Any] = {}

    def build(self, config: dict[str, int]) -> None:
        """Make the published graph, its variables still without values."""
        from verify.tensorflow.graph import Published

        self._published = Published(Config.from_mapping(config))

    def assign(self, value: Array, name: str) -> None:
        """Give one variable its value, in the stored shape."""
        self._model.assign(name, value)

    def save(self, prefix: str) -> None:
        """Write the checkpoint files and ``.meta`` with the Saver."""
        self._model.save(prefix)

    def restore(self, prefix: str) -> None:
        """Fill the variables from checkpoint files with the Saver."""
        self._model.restore(prefix)

    def variables(self) -> Answer:
        """Name and shape of every variable: checkpoint name, variable's name, shape."""
        rows = [[n, v.op.name, v.shape.as_list()] for n, v in self._model.variables.items()]
        return [({"variables": rows}, [])]

    def variable(self, name: str) -> Answer:
        """The value that the graph computes with."""
        return [({}, [self._model.session.run(self._model.variables[name])])]

    def logits(self, tokens: Array, dtype: str) -> Answer:
        """The whole graph in one run."""
        return [({}, [self._model.logits(tokens, dtype)])]

    def activations(self, tokens: Array, dtype: str) -> Answer:
        """Every site in order, one item each, as it is computed."""
        for site, value in self._model.activations(tokens, dtype):
            yield {"site": site}, [value]

    def tying(self) -> Answer:
        """How the graph that is run uses wte."""
        from verify.tensorflow.meta import find_forward

        found = find_forward(self._model.graph)
        return [({"tied": found.logits is not None, "description": found.description}, [])]

    def release(self) -> None:
        """Give up the model and its variables."""
        self._model.session.close()
        self._published = None

    def meta(self, tokens: Array, prefix: str) -> Answer:
        """Examine the graph in ``prefix.meta`` and run it."""
        from verify.tensorflow.meta import run_forward

        forward, logits = run_forward(f"{prefix}.meta", prefix, tokens)
        fields = {
            "found": forward.logits is not None,
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

    @property
    def _model(self) -> Any:
        if self._published is None:
            raise GptVerifyError("no model was built")
        return self._published

    def _reader(self, prefix: str) -> Any:
        if prefix not in self._readers:
            self._readers[prefix] = tf.train.load_checkpoint(prefix)
        return self._readers[prefix]


def _worded(command: Callable[..., Answer | None]) -> Callable[..., Answer]:
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


def reason(message: str) -> str:
    """The sentence of a message that says what happened.

    TensorFlow puts it after the place in our code (``Node: …``) and before the stack.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    after = [i + 1 for i, line in enumerate(lines) if line.startswith("Node:")]
    chosen = lines[after[0]] if after and after[0] < len(lines) else lines[0] if lines else ""
    return chosen


if __name__ == "__main__":
    commands = Commands()
    serve(
        {
            name: _worded(getattr(commands, name))
            for name in vars(Commands)
            if not name.startswith("_")
        }
    )
