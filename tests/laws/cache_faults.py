"""Ports whose full pass is right and whose cache is not. Each alters ``verify.faults.model``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _positions(model: Any, place: Callable[[Tensor, int], Tensor]) -> None:
    """``place(right positions, past)`` where a cache is handed in."""
    right = model.positions

    def positions(ids: Tensor, past: int, real: Any) -> Tensor:
        asked = right(ids, past, real)
        return place(asked, past) if past else asked

    model.positions = positions


def positions_restart(model: Any) -> None:
    """Positions of every call are counted from zero."""
    _positions(model, lambda asked, past: asked - past)


def positions_do_not_advance(model: Any) -> None:
    """The length of the prompt is taken for that of the cache, however many tokens followed."""
    right, prompt = model.positions, [0]

    def positions(ids: Tensor, past: int, real: Any) -> Tensor:
        if past == 0:
            prompt[0] = ids.shape[1]
        return right(ids, prompt[0] if past else 0, real)

    model.positions = positions


def positions_of_a_call_are_one(model: Any) -> None:
    """All tokens of a call get the position of the first, as if there were always one."""
    _positions(model, lambda asked, past: torch.full_like(asked, past))


def positions_one_too_far(model: Any) -> None:
    """The number of cached tokens is counted one too high (wrapped round at the table's end)."""
    size = model.config.n_ctx
    _positions(model, lambda asked, past: (asked + 1) % size)


def positions_one_short(model: Any) -> None:
    """The index of the last cached token is taken for their number."""
    _positions(model, lambda asked, past: asked - 1)


def last_position_clipped(model: Any) -> None:
    """Decoding never reaches the last row of the position table."""
    _positions(model, lambda asked, past: asked.clamp(max=model.config.n_ctx - 2))


def _allowed(model: Any, seen: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``seen(targets, sources)`` where a cache was handed in."""
    for block in model.h:
        right = block.attn.allowed

        def allowed(targets: Tensor, sources: Tensor, right: Any = right) -> Tensor:
            if len(targets) == len(sources):
                return right(targets, sources)
            return seen(targets, sources)

        block.attn.allowed = allowed


def cache_is_not_read(model: Any) -> None:
    """A call attends to its own tokens only."""
    _allowed(model, lambda t, s: (s[None, :] <= t[:, None]) & (s[None, :] >= t[0]))


def first_token_lost(model: Any) -> None:
    """The oldest entry of the cache is cut off."""
    _allowed(model, lambda t, s: (s[None, :] <= t[:, None]) & (s[None, :] > 0))


def _extended(model: Any, keep: slice) -> None:
    def extend(past: Any, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if past is None:
            return k, v
        return torch.cat([past[0][:, :, keep], k], -2), torch.cat([past[1][:, :, keep], v], -2)

    for block in model.h:
        block.attn.extend = extend


def newest_entry_lost(model: Any) -> None:
    """The first token of a call overwrites the last of the call before."""
    _extended(model, slice(None, -1))


def oldest_entry_lost(model: Any) -> None:
    """Every call makes room for itself although there is room."""
    _extended(model, slice(1, None))


def future_within_a_call(model: Any) -> None:
    """With a cache there is no mask, because one token at a time needs none."""
    _allowed(model, lambda t, s: torch.ones(len(t), len(s), dtype=torch.bool))


def mask_at_the_upper_left(model: Any) -> None:
    """is_causal with a cache: the triangle begins at the oldest cached token."""
    _allowed(model, lambda t, s: torch.ones(len(t), len(s), dtype=torch.bool).tril())


def window_of_twelve(model: Any) -> None:
    """The cache has room for twelve tokens, the full pass for all."""
    _allowed(
        model,
        lambda t, s: (s[None, :] <= t[:, None]) & (t[:, None] - s[None, :] < 12),
    )


def _caches(model: Any, change: Callable[[list[Any]], list[Any]]) -> None:
    """``change(caches of all blocks)`` on its way out."""
    right = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = right(*args, **kwargs)
        if "past_key_values" in output:
            output["past_key_values"] = change(output["past_key_values"])
        return output

    # The signature says what the model takes.
    forward.__wrapped__ = right  # type: ignore[attr-defined]
    model.forward = forward


def last_block_only(model: Any) -> None:
    """One cache for all blocks, which each overwrites."""
    _caches(model, lambda caches: [caches[-1]] * len(caches))


def kept_in_bfloat16(model: Any) -> None:
    """Keys and values of a float32 model are kept in bfloat16."""
    _caches(
        model,
        lambda caches: [(k.bfloat16().to(k.dtype), v.bfloat16().to(v.dtype)) for k, v in caches],
    )


def rows_exchanged(model: Any) -> None:
    """The cache comes back with its rows in another order."""
    _caches(model, lambda caches: [(k.flip(0), v.flip(0)) for k, v in caches])
