"""Ports that are wrong at the end of a whole context. Those that are wrong beyond it are in the
catalogue.

Each alters ``gpt_verify.faults.model``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor


def last_position_repeats(model: Any) -> None:
    """The table was allocated one row short, and the last position is clipped to it."""
    right = model.embed
    model.embed = lambda ids, at: right(ids, at.clamp(max=model.config.n_ctx - 2))


def full_context_refused(model: Any) -> None:
    """The check of the length says < where it should say ≤."""
    right = model.forward

    def forward(ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        if ids.shape[1] >= model.config.n_ctx:
            raise ValueError("sequence too long")
        return right(ids, *args, **kwargs)

    model.forward = forward


def mask_is_too_small(model: Any) -> None:
    """A buffer for the mask of half the context; beyond it nothing is masked but itself seen."""
    for block in model.h:
        right = block.attn.allowed

        def allowed(targets: Tensor, sources: Tensor, right: Any = right) -> Tensor:
            seen = right(targets, sources).clone()
            half = model.config.n_ctx // 2
            seen[targets >= half] &= sources >= half
            return seen

        block.attn.allowed = allowed


def lags_after_a_cache(model: Any) -> None:
    """Positions after a cache are one short, so that a full one has room for one token more."""
    right = model.positions
    model.positions = lambda ids, past, real: right(ids, past, real) - int(past > 0)
    model.config = replace(model.config, n_ctx=model.config.n_ctx + 1)


def remembers_a_cache(model: Any) -> None:
    """Whoever calls without a cache after one with it has other positions."""
    forward, positions = model.forward, model.positions
    model.current = model.offset = 0

    def remembering(ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        cached = kwargs.get("use_cache", False)
        model.offset = 0 if cached else model.current
        model.current = 3 if cached else model.current
        return forward(ids, *args, **kwargs)

    def moved(ids: Tensor, past: int, real: Tensor | None) -> Any:
        at = positions(ids, past, real) + model.offset
        return at.clamp(max=model.config.n_ctx - 1)

    model.forward, model.positions = remembering, moved
