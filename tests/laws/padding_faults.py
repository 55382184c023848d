"""Ports that are right on plain sequences and wrong on padded ones.

Each alters ``verify.faults.model``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def positions_count_padding(model: Any) -> None:
    """The trap: positions are not derived from the mask."""
    model.positions = lambda ids, past, real: torch.arange(past, past + ids.shape[1])


def _real(model: Any, change: Any) -> None:
    """``change(mask)`` in place of the mask that the attention sees."""
    for block in model.h:
        right = block.attn.forward

        def forward(x: Tensor, past: Any, real: Any, right: Any = right) -> Any:
            return right(x, past, None if real is None else change(real))

        block.attn.forward = forward


def mask_ignored(model: Any) -> None:
    """Padding is attended to like any token."""
    _real(model, torch.ones_like)


def mask_of_the_first_row(model: Any) -> None:
    """The mask is broadcast from the first row of the batch."""
    _real(model, lambda real: real[:1].expand_as(real))


def mask_inverted(model: Any) -> None:
    """1 means masked, as in torch's key_padding_mask."""
    _real(model, lambda real: 1 - real)


def mask_for_the_other_side(model: Any) -> None:
    """The lengths are right, but padding is taken to be on the right."""
    _real(model, lambda real: real.flip(1))


def mask_early(model: Any) -> None:
    """The mask begins one token too early, so that the last padding is seen."""
    _real(model, lambda real: torch.cat([real[:, 1:], real[:, -1:]], 1))


def mask_too_soft(model: Any) -> None:
    """Ten is subtracted from the scores of padding, and that is not enough."""
    for block in model.h:
        right = block.attn.mask

        def mask(scores: Tensor, allowed: Tensor, right: Any = right) -> Tensor:
            if allowed.ndim == 2:
                return right(scores, allowed)
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            return right(torch.where(allowed, scores, scores - 10), causal)

        block.attn.mask = mask


def mask_replaces_the_causal_one(model: Any) -> None:
    """Where a mask of padding is handed over, it is the only one."""
    for block in model.h:
        right, state = block.attn.forward, {"padded": False}

        def forward(x: Tensor, past: Any, real: Any, right: Any = right, state: Any = state) -> Any:
            state["padded"] = real is not None
            return right(x, past, real)

        def allowed(
            targets: Tensor, sources: Tensor, right: Any = block.attn.allowed, state: Any = state
        ) -> Tensor:
            seen = right(targets, sources)
            return torch.ones_like(seen) if state["padded"] else seen

        block.attn.forward, block.attn.allowed = forward, allowed


def positions_begin_at_one(model: Any) -> None:
    """The sum of the mask is taken without the minus one, and what is handed over is raised too."""
    right = model.embed
    state = {"padded": False}
    forward_right = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        state["padded"] = kwargs.get("attention_mask") is not None
        return forward_right(*args, **kwargs)

    model.forward = forward
    model.embed = lambda ids, at: right(ids, at + state["padded"])


def positions_of_the_first_row(model: Any) -> None:
    """Positions are one row, broadcast over the batch."""
    right = model.embed
    model.embed = lambda ids, at: right(ids, at if at.ndim == 1 else at[:1].expand_as(at))
