"""Products on tensor cores, by hand: what torch does on a GPU where TF32 is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from gpt_verify.port import (
    ACTIVATIONS,
    GENERATE,
    LAST,
    LOSS,
    MASKED,
    MASKED_LOSS,
    PADDED,
    PADDED_AT,
    PATTERNS,
    RESIZED,
    STATES,
    STEP,
    STEP_PADDED,
    STEP_PADDED_AT,
    Capability,
    Port,
)

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
#: What a port computes in; around each of them, and so below what watches the run, as hardware is.
_CALLS: tuple[Capability[Any], ...] = (
    ACTIVATIONS,
    LAST,
    LOSS,
    MASKED_LOSS,
    STEP,
    STEP_PADDED,
    STEP_PADDED_AT,
)
_CALLS += (PADDED, PADDED_AT, MASKED, STATES, PATTERNS, GENERATE)


def round_tf32(x: torch.Tensor) -> torch.Tensor:
    """A float32 tensor with the 13 last of its 23 mantissa bits rounded away, to nearest even."""
    bits = x.contiguous().view(torch.int32)
    rounded = bits + 0xFFF + ((bits >> 13) & 1)
    return (rounded & ~0x1FFF).view(torch.float32)


class _Tf32Products(TorchDispatchMode):  # type: ignore[misc]  # torch has no type for it
    """Operands of float32 products are rounded to 11 significant bits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in _PRODUCTS and result.dtype == torch.float32:
            first = name in ("addmm", "baddbmm")  # whose first operand is the bias
            with _disable_current_modes():  # the hardware shows nobody that it rounds
                rounded = [a if i < first else round_tf32(a) for i, a in enumerate(args)]
                result.copy_(func(*rounded, **(kwargs or {})))
        return result


def inject_tf32(port: Any) -> None:
    """``torch.backends.cuda.matmul.allow_tf32``, around a port."""
    port.logits = _inside(port.logits)
    for capability in _CALLS:
        if call := port.offers().get(capability):
            port.offer(capability, _inside(call))
    if resized := port.offers().get(RESIZED):
        port.offer(RESIZED, partial(_resized, resized))


@contextmanager
def _resized(resized: Callable[[int], AbstractContextManager[Port]], rows: int) -> Iterator[Port]:
    """A copy computes on the same hardware."""
    with resized(rows) as made:
        inject_tf32(made)
        yield made


def _inside(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with _Tf32Products():
            return call(*args, **kwargs)

    return inside
