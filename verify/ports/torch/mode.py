"""What may make a torch module behave as in training: its dropout, and whatever draws at random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode


def dropout_of(module: torch.nn.Module) -> dict[str, float]:
    """Name → probability of every part that is a dropout, or that keeps a number named after one
    (``self.attn_dropout = 0.1``, for ``torch.nn.functional``). Those of probability 0 are left out.
    """
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, _DropoutNd):
            numbers = [part.p]
        else:
            numbers = [value for key, value in vars(part).items() if "drop" in key.lower()]
        likely = [float(p) for p in numbers if isinstance(p, float) and 0.0 < p <= 1.0]
        if likely:
            found[name] = max(likely)
    return found


@contextmanager
def watched_draws(module: torch.nn.Module) -> Iterator[list[str]]:
    """While it is open, gathers ``part (operation)`` for everything that draws random numbers.

    What draws from a generator that is not torch's own is not seen.
    """
    watch = _Draws()
    with ExitStack() as stack:
        for name, part in module.named_modules():
            enter, leave = watch.entering(name or "the model"), watch.leaving
            stack.callback(part.register_forward_pre_hook(enter).remove)
            # Also when the part raises, so that the stack of names is right in what follows.
            stack.callback(part.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(watch)
        yield watch.found


class _Draws(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """Operations that say that they may draw, and that move a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside: list[str] = []

    def entering(self, name: str) -> Any:
        def enter(*_: Any) -> None:
            self._inside.append(name)

        return enter

    def leaving(self, *_: Any) -> None:
        if self._inside:
            self._inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        # Fused attention is tagged as well, and draws only where it drops.
        before = _random_states()
        result = func(*args, **kwargs)
        if any(not torch.equal(a, b) for a, b in zip(before, _random_states(), strict=True)):
            where = self._inside[-1] if self._inside else "outside of every module"
            words = f"{where} ({func._schema.name.removeprefix('aten::')})"
            if words not in self.found:
                self.found.append(words)
        return result


def _random_states() -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return states + (torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])
