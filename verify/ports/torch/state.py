"""A module is moved to another device for a while, and back, with nothing of it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.errors import described
from gpt_verify.port import NotExamined, Port

if TYPE_CHECKING:
    from gpt_verify.ports.torch.module import TorchModule


@contextmanager
def elsewhere(port: TorchModule, device: str) -> Iterator[Port]:
    """The module on ``device``. Its memory here is kept, and is in its place again afterwards.

    Raises:
        NotExamined: there is no such device, or the module does not run on it.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise NotExamined("no CUDA device")
    put_back, here = remember(port.module), port.device
    try:
        port.module.to(device)
        port.device = device
        try:
            port.logits(np.zeros((1, min(2, port.config.n_ctx)), np.int64))
        except RuntimeError as error:
            raise NotExamined(f"it does not run on {device}: {described(error)}") from error
        yield port
    finally:
        port.device = here
        put_back()


def remember(module: torch.nn.Module) -> Callable[[], None]:
    """Returns what undoes ``.to``: a parameter gets its data back, a buffer is put back itself."""
    held: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    data: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in module.modules():
        for where in (part._parameters, part._buffers):
            for name, tensor in where.items():
                if tensor is None:
                    continue
                held.append((where, name, tensor))
                for kept in (tensor, tensor.grad) if tensor.is_leaf else (tensor,):
                    if kept is not None:
                        data[id(kept)] = kept, kept.data

    def put_back() -> None:
        for where, name, tensor in held:
            where[name] = tensor
        for tensor, value in data.values():
            tensor.data = value

    return put_back


@contextmanager
def kept(module: torch.nn.Module, values: bool) -> Iterator[None]:
    """What is done to a module meanwhile is undone: modes, numbers, flags, what its configuration
    says, which tensors it has and where they lie, and what its buffers hold.

    Args:
        module: any.
        values: whether what the parameters hold is copied, and put back, too.
    """
    put_back = remember(module)
    parts = list(module.modules())
    configs = [getattr(part, name, None) for part in parts for name in ("config", "cfg")]
    held = [*parts, *(c for c in configs if hasattr(c, "__dict__") and not isinstance(c, type))]
    settings = [(each, _settings(each)) for each in {id(each): each for each in held}.values()]
    wanted = {id(p): (p, p.requires_grad) for p in module.parameters()}.values()
    copied = [*module.buffers(), *(module.parameters() if values else ())]
    copies = [(tensor, tensor._version, tensor.detach().clone()) for tensor in copied]
    try:
        yield
    finally:
        for each, (own, inside) in settings:
            each.__dict__.clear()
            each.__dict__.update(own)
            for name, contents in inside.items():
                own[name].clear()
                own[name].update(contents)
        put_back()
        for parameter, requires in wanted:
            parameter.requires_grad = requires
        with torch.no_grad():
            for tensor, version, value in copies:
                if tensor._version != version:
                    tensor.copy_(value)


def _settings(held: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """An object's attributes, and what those that are mappings contain."""
    own = dict(vars(held))
    return own, {name: dict(v) for name, v in own.items() if isinstance(v, dict)}
