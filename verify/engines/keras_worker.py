"""KerasHub's GPT-2, asked through pipes (``gpt_verify.process.worker``). Run, not imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import keras_hub
import numpy as np

from gpt_verify.process.wire import Array
from gpt_verify.process.worker import Item, serve


class _Model:
    def __init__(self) -> None:
        self._backbone: Any = None

    def open(self, path: str, dtype: str) -> Iterator[Item]:
        """Load a directory in the format of the Hugging Face hub by KerasHub's own converter."""
        self._backbone = keras_hub.models.GPT2Backbone.from_preset(path, dtype=dtype)
        backend = f"Keras {keras.__version__} on {keras.config.backend()}"
        yield {"remark": f"KerasHub {keras_hub.__version__}, {backend}"}, ()

    def logits(self, tokens: Array) -> Iterator[Item]:
        """The head is the token embedding, used in reverse, as in ``GPT2CausalLM``."""
        ids = np.asarray(tokens, np.int32)
        inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        hidden = self._backbone(inputs, training=False)
        logits = self._backbone.token_embedding(hidden, reverse=True)
        yield {}, (keras.ops.convert_to_numpy(keras.ops.cast(logits, "float32")),)


if __name__ == "__main__":
    asked = _Model()
    serve({"open": asked.open, "logits": asked.logits})
