"""What a module's ``forward`` takes besides the ids, as capabilities of the port.

Nothing is known of classes: a module that takes ``labels`` has a loss, one that takes
``past_key_values`` has a cache, one that takes ``attention_mask`` can be padded. These are the
names that transformers uses, and most ports follow.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.errors import PortError
from gpt_verify.port import (
    GRADIENTS,
    INPUT_GRADIENTS,
    LOSS,
    PADDED,
    PADDED_AT,
    STEP,
    TYING,
    NotExamined,
)
from gpt_verify.ports.torch.gradients import Differentiation
from gpt_verify.ports.torch.trace import to_numpy
from gpt_verify.ports.torch.tying import Tying

if TYPE_CHECKING:
    from gpt_verify.port import Floats, Tokens
    from gpt_verify.ports.torch.module import TorchModule


def add_capabilities(port: TorchModule) -> None:
    """Give a port what its module has: from the arguments of its ``forward``, ``loss``, ``step``,
    ``padded`` and ``padded_at``; from its having parameters, their derivatives."""
    takes = set(inspect.signature(port.module.forward).parameters)
    calls = _Calls(port)
    if "labels" in takes:
        port.offer(LOSS, calls.loss)
    if {"past_key_values", "use_cache"} <= takes:
        port.offer(STEP, calls.step)
    if "attention_mask" in takes:
        port.offer(PADDED, calls.padded)
        if "position_ids" in takes:
            port.offer(PADDED_AT, calls.padded_at)
    if any(parameter.is_floating_point() for parameter in port.module.parameters()):
        differentiation = Differentiation(port)
        port.offer(GRADIENTS, differentiation.gradients)
        port.offer(INPUT_GRADIENTS, differentiation.input_gradients)
        port.offer(TYING, Tying(port, differentiation).tying)


class _Calls:
    """The module's ``forward`` with keywords."""

    def __init__(self, port: TorchModule) -> None:
        self._port = port
        takes = inspect.signature(port.module.forward).parameters
        self._plain = {"use_cache": False} if "use_cache" in takes else {}

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        output = self._call(tokens, labels=self._tensor(labels), **self._plain)
        loss = member(output, "loss")
        if loss is None:
            raise NotExamined("forward takes labels and returns no loss")
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise PortError(f"{self._port.name}: its loss is {type(loss).__name__}, not one number")
        return float(loss)

    def step(self, tokens: Tokens, cache: Any) -> tuple[Floats, Any]:
        output = self._call(tokens, past_key_values=cache, use_cache=True)
        return self._logits(output), member(output, "past_key_values")

    def padded(self, tokens: Tokens, mask: Tokens) -> Floats:
        return self._logits(self._call(tokens, attention_mask=self._tensor(mask), **self._plain))

    def padded_at(self, tokens: Tokens, mask: Tokens, positions: Tokens) -> Floats:
        more = {"attention_mask": self._tensor(mask), "position_ids": self._tensor(positions)}
        return self._logits(self._call(tokens, **more, **self._plain))

    def _call(self, tokens: Tokens, **more: Any) -> Any:
        with torch.no_grad():
            return self._port.module(self._tensor(tokens), **more)

    def _logits(self, output: Any) -> Floats:
        logits = logits_of(output)
        if isinstance(logits, torch.Tensor):
            logits = self._port.bare(logits)
        return to_numpy(logits)

    def _tensor(self, ids: Tokens) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(ids, np.int64), device=self._port.device)


def logits_of(output: Any) -> Any:
    """A tensor, or where libraries put it: ``.logits``, ``["logits"]``, the first of a tuple."""
    if isinstance(output, torch.Tensor):
        return output
    found = member(output, "logits")
    if found is not None:
        return found
    if isinstance(output, (tuple, list)) and output:
        return output[0]
    return output


def member(output: Any, name: str) -> Any:
    """An entry of a mapping or an attribute; None where there is neither."""
    if isinstance(output, dict):  # transformers' outputs are ordered dicts
        return output.get(name)
    return getattr(output, name, None)
