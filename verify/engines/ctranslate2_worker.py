"""CTranslate2, asked through pipes (``gpt_verify.process.worker``). Run, not imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ctranslate2
import numpy as np

from gpt_verify.errors import PortError
from gpt_verify.process.wire import Array
from gpt_verify.process.worker import Item, serve


class _Generator:
    def __init__(self) -> None:
        self._generator: Any = None

    def open(self, path: str, compute_type: str, device: str) -> Iterator[Item]:
        """Load a converted model; says in which type it really computes."""
        self._generator = ctranslate2.Generator(path, device=device, compute_type=compute_type)
        yield {"remark": f"CTranslate2 computes in {self._generator.compute_type}"}, ()

    def logits(self, tokens: Array) -> Iterator[Item]:
        rows, length = tokens.shape
        ids = ctranslate2.StorageView.from_array(np.ascontiguousarray(tokens, np.int32))
        lengths = ctranslate2.StorageView.from_array(np.full(rows, length, np.int32))
        try:
            value = self._generator.forward_batch(ids, lengths)
        except RuntimeError as e:
            raise PortError(str(e)) from None
        yield {}, (np.array(value.to(ctranslate2.DataType.float32)),)


if __name__ == "__main__":
    asked = _Generator()
    serve({"open": asked.open, "logits": asked.logits})
