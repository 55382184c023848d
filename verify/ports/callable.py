"""A function from tokens to logits as a port: another framework, a server, anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt_verify.errors import PortError
from gpt_verify.port import Dtype, Floats, Port, Tokens


class CallablePort(Port):
    """``tokens int64[B, T] → logits[B, T, V]``, both NumPy arrays (or what NumPy can read)."""

    def __init__(self, function: Callable[[Tokens], Any], name: str, dtype: Dtype | None) -> None:
        self.name = name
        self._function = function
        self.dtype = dtype or "float32"

    def logits(self, tokens: Tokens) -> Floats:
        output = self._function(np.array(tokens, np.int64))
        if hasattr(output, "detach"):  # a torch tensor, on any device, in any format
            output = output.detach()
            if str(output.dtype) == "torch.bfloat16":
                output = output.float()
            output = output.cpu()
        try:
            array = np.asarray(output)
        except (TypeError, ValueError) as e:
            raise PortError(f"{self.name}: returned {type(output).__name__}, not an array") from e
        if array.dtype == object:
            raise PortError(
                f"{self.name}: returned {type(output).__name__}, not an array of numbers"
            )
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        return array
