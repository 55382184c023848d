"""Ports that compute something else on a GPU than on the CPU.

There need be no GPU: the port says that it runs on one, and is altered there; ``elsewhere`` is the
same model as it is on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gpt_verify.port import Dtype, Floats, Port, Tokens

Alter = Callable[[Any], None]


class OnTwoDevices(Port):
    """One port that runs ``here`` on ``cuda`` and ``there`` on ``cpu``."""

    def __init__(self, here: Port, there: Port) -> None:
        self._here, self._there = here, there
        self.name, self.device = "two devices", "cuda"
        self.dtype: Dtype = here.dtype

    def logits(self, tokens: Tokens) -> Floats:
        return self._here.logits(tokens)

    @contextmanager
    def elsewhere(self, device: str) -> Iterator[Port]:
        assert device == "cpu"
        yield self._there


def _then(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    module.register_forward_hook(lambda module, args, output: change(output))


def rounds_its_products(model: Any) -> None:
    """Products of the GPU keep 11 of 24 significant bits, as those of TF32 operands do."""
    for block in model.transformer.h:
        for product in (block.attn.c_attn, block.mlp.c_fc, block.mlp.c_proj):
            _then(product, lambda x: ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(x.dtype))


def another_gelu(model: Any) -> None:
    """The kernel of the GPU is the exact GELU."""
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU()


def stale_weights(model: Any) -> None:
    """One tensor on the GPU is what it was before the last weights were loaded."""
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight.mul_(0.99)


def not_a_number(model: Any) -> None:
    """A kernel of the GPU reads memory that was never written."""

    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., -1, 0] = torch.nan
        return x

    _then(model.lm_head, spoil)
