"""What a module's ``forward`` takes besides the ids, as capabilities of the port.

Nothing is known of classes: a module that takes ``labels`` has a loss, one that takes
``past_key_values`` has a cache, one that takes ``attention_mask`` can be padded. These are the
names that transformers uses, and most ports follow; others are in ``styles``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.errors import PortError
from gpt_verify.port import (
    GRADIENTS,
    INPUT_GRADIENTS,
    LAST,
    LEARN,
    LOSS,
    MASKED,
    MASKED_LOSS,
    MODES,
    PADDED,
    PADDED_AT,
    PLAIN_CALL,
    RESIZED,
    STEP,
    STEP_PADDED,
    STEP_PADDED_AT,
    TYING,
    UNFROZEN,
    NotExamined,
)
from gpt_verify.ports.torch.generation import add_generation
from gpt_verify.ports.torch.gradients import Differentiation
from gpt_verify.ports.torch.handed_out import add_outputs
from gpt_verify.ports.torch.outputs import logits_of, member
from gpt_verify.ports.torch.resized import resized
from gpt_verify.ports.torch.styles import OtherCache, Targets, cache_argument, takes_of
from gpt_verify.ports.torch.trace import to_numpy
from gpt_verify.ports.torch.training import Training
from gpt_verify.ports.torch.tying import Tying

if TYPE_CHECKING:
    from gpt_verify.port import Floats, Tokens
    from gpt_verify.ports.torch.module import TorchModule


#: Of masks of zeros and ones. Who hands his mask to torch's own attention takes no integers.
MASK_TYPES = (torch.int64, torch.bool, torch.float32)


def add_capabilities(port: TorchModule) -> None:
    """Give a port what its module has: from the arguments of its ``forward``, ``loss``, ``step``,
    ``padded`` and their like; from its having parameters, their derivatives."""
    takes = takes_of(port.module)
    calls, targets = _Calls(port), None
    port.offer(PLAIN_CALL, port.run)
    if "labels" in takes:
        port.offer(LOSS, calls.loss)
    elif "targets" in takes:
        targets = Targets(port, logits_of)
        _add_targets(port, targets, calls)
    if {"past_key_values", "use_cache"} <= takes.keys():
        port.offer(STEP, calls.step)
        _add_steps(port, calls.step_padded, takes)
    elif name := cache_argument(takes):
        cache = OtherCache(calls.made, calls.logits, name, takes)
        port.offer(STEP, cache.step)
        _add_steps(port, cache.step_padded, takes)
    if "attention_mask" in takes:
        port.offer(PADDED, calls.padded)
        if "labels" in takes:
            port.offer(MASKED_LOSS, calls.masked_loss)
        port.offer(MASKED, calls.masked)
        if "position_ids" in takes:
            port.offer(PADDED_AT, calls.padded_at)
    add_outputs(port)
    add_generation(port)
    if hasattr(port.module, "resize_token_embeddings"):
        port.offer(RESIZED, lambda rows: resized(port, rows))
    if any(parameter.is_floating_point() for parameter in port.module.parameters()):
        differentiation = Differentiation(port)
        port.offer(GRADIENTS, differentiation.gradients)
        port.offer(INPUT_GRADIENTS, differentiation.input_gradients)
        port.offer(TYING, Tying(port, differentiation).tying)
        training = Training(port, differentiation, targets)
        port.offer(LEARN, training.learn)
        port.offer(MODES, training.modes)
        port.offer(UNFROZEN, training.unfrozen)


def _add_steps(port: TorchModule, step: Callable[..., Any], takes: Collection[str]) -> None:
    """Steps of padded sequences, where a mask is taken beside the cache."""
    if "attention_mask" in takes:
        port.offer(STEP_PADDED, step)
        if "position_ids" in takes:
            port.offer(STEP_PADDED_AT, step)


def _add_targets(port: TorchModule, targets: Targets, calls: _Calls) -> None:
    """A loss, where there is one; and where nothing else returns all logits, that call."""
    if targets.shifts is not None:
        port.offer(LOSS, targets.loss)
    if targets.needed:
        calls.with_targets = True
        port.call_with(lambda module, ids: module(ids, targets=ids))
        port.offer(LAST, calls.last)
    port.remarks = (*port.remarks, *targets.remarks)


class _Calls:
    """The module's ``forward`` with keywords."""

    def __init__(self, port: TorchModule) -> None:
        self._port = port
        takes = takes_of(port.module)
        self._plain = {"use_cache": False} if "use_cache" in takes else {}
        self.with_targets = False
        self._mask_type = MASK_TYPES[0]

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        return self._loss(tokens, labels=self._tensor(labels))

    def masked_loss(self, tokens: Tokens, mask: Tokens, labels: Tokens) -> float:
        given = self._tensor(mask).to(self._mask_type)
        more = {"attention_mask": given, "labels": self._tensor(labels)}
        return self._loss(tokens, **more)

    def _loss(self, tokens: Tokens, **more: Any) -> float:
        output = self._call(tokens, **more, **self._plain)
        loss = member(output, "loss")
        if loss is None:
            raise NotExamined("forward takes labels and returns no loss")
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise PortError(f"{self._port.name}: its loss is {type(loss).__name__}, not one number")
        return float(loss)

    def step(self, tokens: Tokens, cache: Any) -> tuple[Floats, Any]:
        output = self._call(tokens, past_key_values=cache, use_cache=True)
        return self.logits(output), member(output, "past_key_values")

    def last(self, tokens: Tokens) -> Floats:
        """``Port.last``: without targets."""
        logits = self.logits(self._call(tokens))
        return logits[:, -1] if logits.ndim == 3 else logits

    def made(self, tokens: Tokens, **more: Any) -> Any:
        """What ``forward`` returns; with targets, where only so it returns all logits."""
        arrays = {n: self._tensor(v) for n, v in more.items() if isinstance(v, np.ndarray)}
        if "attention_mask" in arrays:
            arrays["attention_mask"] = arrays["attention_mask"].to(self._mask_type)
        if self.with_targets:
            arrays["targets"] = self._tensor(tokens)
        return self._call(tokens, **(more | arrays))

    def padded(self, tokens: Tokens, mask: Tokens) -> Floats:
        return self._padded(tokens, mask, **self._plain)

    def padded_at(self, tokens: Tokens, mask: Tokens, positions: Tokens) -> Floats:
        return self._padded(tokens, mask, position_ids=self._tensor(positions), **self._plain)

    def masked(self, tokens: Tokens, mask: Any, positions: Tokens | None) -> Floats:
        """``Port.masked``: as it is, whatever its type."""
        more = {} if positions is None else {"position_ids": self._tensor(positions)}
        given = torch.as_tensor(mask, device=self._port.device)
        return self.logits(self._call(tokens, attention_mask=given, **more, **self._plain))

    def step_padded(
        self, tokens: Tokens, cache: Any, mask: Tokens, positions: Tokens | None = None
    ) -> tuple[Floats, Any]:
        """``Port.step_padded`` and ``Port.step_padded_at``."""
        more = {} if positions is None else {"position_ids": self._tensor(positions)}
        given = self._tensor(mask).to(self._mask_type)
        more |= {"past_key_values": cache, "use_cache": True}
        output = self._call(tokens, attention_mask=given, **more)
        return self.logits(output), member(output, "past_key_values")

    def _padded(self, tokens: Tokens, mask: Tokens, **more: Any) -> Floats:
        """With a mask of the first of the types, in the order in which they are usual, that the
        module takes."""
        given, refused = self._tensor(mask), None
        for dtype in (self._mask_type, *MASK_TYPES):
            try:
                output = self._call(tokens, attention_mask=given.to(dtype), **more)
            except Exception as error:
                refused = refused or error
                continue
            self._mask_type = dtype
            return self.logits(output)
        assert refused is not None, "there is a type that was tried"
        raise refused

    def _call(self, tokens: Tokens, **more: Any) -> Any:
        with torch.no_grad():
            return self._port.module(self._tensor(tokens), **more)

    def logits(self, output: Any) -> Floats:
        """Those in what ``forward`` has returned."""
        logits = logits_of(output)
        if isinstance(logits, torch.Tensor):
            logits = self._port.bare(logits)
        return to_numpy(logits)

    def _tensor(self, ids: Tokens) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(ids, np.int64), device=self._port.device)
