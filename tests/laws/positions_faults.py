"""Ports that are wrong at the end of the position table or beyond it.

Each alters ``verify.faults.model``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# One token more than n_ctx


def _longer(model: Any, row: Tensor | None) -> None:
    """The model takes any length; positions beyond the table have this row, or none."""
    right = model.embed
    size = model.config.n_ctx

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        x = right(ids, positions.clamp(max=size - 1))
        beyond = (positions >= size)[..., None]
        other = 0 if row is None else row
        return torch.where(beyond, x - model.wpe[-1] + other, x)

    model.embed = embed
    model.config = _Unlimited(model.config)


class _Unlimited:
    """Sizes of a model that does not look at n_ctx."""

    def __init__(self, config: Any) -> None:
        self._config = config

    @property
    def n_ctx(self) -> int:
        return 1 << 20

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def positions_clipped(model: Any) -> None:
    """Positions beyond the table are given its last row, as by jnp.take or a clamp."""
    _longer(model, model.wpe[-1])


def positions_wrapped(model: Any) -> None:
    """Positions are taken modulo n_ctx."""
    _longer(model, model.wpe[0])


def positions_zero(model: Any) -> None:
    """Positions beyond the table are given zeros, as by a gather on a GPU."""
    _longer(model, None)


def _cut(model: Any, keep: slice) -> None:
    right = model.forward

    def forward(ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        ids = ids[:, keep] if ids.shape[1] > model.config.n_ctx else ids
        return right(ids, *args, **kwargs)

    model.forward = forward


def oldest_token_dropped(model: Any) -> None:
    """What is too long is cut at its beginning."""
    _cut(model, slice(1, None))


def newest_token_dropped(model: Any) -> None:
    """What is too long is cut at its end."""
    _cut(model, slice(None, -1))


def cache_rolls_on(model: Any) -> None:
    """A full cache makes room by forgetting its oldest token; without a cache length is checked."""
    right = model.forward

    def forward(ids: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            room = model.config.n_ctx - ids.shape[1]
            past_key_values = [(k[:, :, -room:], v[:, :, -room:]) for k, v in past_key_values]
        return right(ids, past_key_values=past_key_values, **kwargs)

    model.forward = forward


def refusal_breaks_it(model: Any) -> None:
    """After the refusal every call raises, as on a GPU after an assertion of the device."""
    right, state = model.forward, {"broken": False}

    def forward(*args: Any, **kwargs: Any) -> Any:
        if state["broken"]:
            raise RuntimeError("device-side assert triggered")
        try:
            return right(*args, **kwargs)
        except IndexError:
            state["broken"] = True
            raise

    model.forward = forward


# A whole context


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
