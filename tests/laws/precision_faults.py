"""Ports that compute in less than they declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


def round_tf32(x: torch.Tensor) -> torch.Tensor:
    """A float32 tensor with the 13 last of its 23 mantissa bits rounded away, to nearest even."""
    bits = x.contiguous().view(torch.int32)
    rounded = bits + 0xFFF + ((bits >> 13) & 1)
    return (rounded & ~0x1FFF).view(torch.float32)


class _Tf32Products(TorchDispatchMode):
    """Tensor cores, by hand: operands of float32 products are rounded to 11 significant bits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in _PRODUCTS and result.dtype == torch.float32:
            first = name in ("addmm", "baddbmm")  # whose first operand is the bias
            with _disable_current_modes():  # the hardware shows nobody that it rounds
                rounded = [a if i < first else round_tf32(a) for i, a in enumerate(args)]
                result.copy_(func(*rounded, **(kwargs or {})))
        return result


def _inside(mode: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return function(*args, **kwargs)

    return inside


def tf32(port: Any) -> None:
    """Products on tensor cores: torch.backends.cuda.matmul.allow_tf32.

    Around the port, not the model, so that it lies below what watches the run, as hardware does.
    """
    for name in ("logits", "activations"):
        setattr(port, name, _inside(_Tf32Products, getattr(port, name)))


def autocast_bfloat16(model: Any) -> None:
    """Autocast was left on around a float32 model."""
    model.forward = _inside(lambda: torch.autocast("cpu", dtype=torch.bfloat16), model.forward)


def autocast_float16(model: Any) -> None:
    """The same in float16."""
    model.forward = _inside(lambda: torch.autocast("cpu", dtype=torch.float16), model.forward)


def one_product_in_bfloat16(model: Any) -> None:
    """One matrix product is computed in bfloat16 and cast back."""
    layer = model.transformer.h[1].mlp.c_fc

    def forward(x: torch.Tensor) -> torch.Tensor:
        product = x.bfloat16() @ layer.weight.bfloat16() + layer.bias.bfloat16()
        return product.to(x.dtype)

    layer.forward = forward
