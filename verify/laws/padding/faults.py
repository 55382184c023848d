"""Faults of padding: a sequence that is padded on the left has not the logits that it has alone.

The oracle makes the same mistakes in ``gpt_verify.laws.padding.hypotheses``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch


def _inject_mask(change: Callable[[Any], Any], model: Any, layers: Sequence[int]) -> None:
    """``change(mask)`` in place of the mask that the attention sees."""

    def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        return right(x, past, None if real is None else change(real))

    for block in model.blocks(layers):
        wrap(block.attn, "forward", forward)


def _no_causal_mask(model: Any, layers: Sequence[int]) -> None:
    """Where a mask of padding is handed over, it is the only one."""

    def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        self.padded = real is not None
        return right(x, past, real)

    def allowed(self: Any, right: Any, targets: Any, sources: Any) -> Any:
        seen = right(targets, sources)
        return torch.ones_like(seen) if self.padded else seen

    for block in model.blocks(layers):
        wrap(block.attn, "forward", forward)
        wrap(block.attn, "allowed", allowed)


def _positions_from_1(model: Any, layers: Sequence[int]) -> None:
    """The sum of the mask without the minus one, and what is handed over is raised as well."""

    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        self.padded = kwargs.get("attention_mask") is not None
        return right(*args, **kwargs)

    wrap(model, "forward", forward)
    wrap(model, "embed", lambda self, right, ids, at: right(ids, at + self.padded))


def _positions_of_first_row(model: Any, layers: Sequence[int]) -> None:
    def embed(self: Any, right: Any, ids: Any, at: Any) -> Any:
        return right(ids, at if at.ndim == 1 else at[:1].expand_as(at))

    wrap(model, "embed", embed)


def _positions_counted(model: Any, layers: Sequence[int]) -> None:
    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        return right(ids, past, None)

    wrap(model, "positions", positions)


def _left_aligned(real: Any) -> Any:
    """The mask of as many tokens, were all padding on the left."""
    width = real.shape[1]
    masked = width - real.long().sum(-1, keepdim=True)
    return (torch.arange(width, device=real.device)[None] >= masked).long()


def _mask_count(model: Any, layers: Sequence[int]) -> None:
    _inject_mask(_left_aligned, model, layers)
    _positions_count(model, layers)


def _positions_count(model: Any, layers: Sequence[int]) -> None:
    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        return right(ids, past, None if real is None else _left_aligned(real))

    wrap(model, "positions", positions)


def _mask_added(model: Any, layers: Sequence[int]) -> None:
    """As where a mask of zeros and ones is handed on to who adds what he is handed."""

    def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        self.added = real
        return right(x, past, None)

    def mask(self: Any, right: Any, scores: Any, allowed: Any) -> Any:
        if self.added is not None:
            scores = scores + self.added[:, None, None, :].to(scores.dtype)
        return right(scores, allowed)

    for block in model.blocks(layers):
        wrap(block.attn, "forward", forward)
        wrap(block.attn, "mask", mask)


def _mask_type(model: Any, layers: Sequence[int]) -> None:
    """As where a mask of torch's own attention, of which true is seen, is written for one of its
    modules, of which true is masked."""
    _inject_mask(lambda real: ~real if real.dtype == torch.bool else real, model, layers)


def _cached_positions(model: Any, layers: Sequence[int]) -> None:
    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        return right(ids, past, None if past else real)

    wrap(model, "positions", positions)


def _cached_attended(model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        if past is not None and real is not None:
            real = real.clone()
            real[:, : past[0].shape[-2]] = 1
        return right(x, past, real)

    for block in model.blocks(layers):
        wrap(block.attn, "forward", forward)


def _cache_ignored(model: Any, layers: Sequence[int]) -> None:
    _cached_positions(model, layers)
    _cached_attended(model, layers)


def _padding(
    name: str,
    summary: str,
    in_model: Inject,
    seen: str = "",
    needs: str = "",
    law: str | None = "positions.padding",
) -> Fault:
    law = None if needs else law
    return Fault(
        f"padding-{name}",
        "padding",
        summary,
        seen,
        InModel(in_model, layered=False),
        law=law,
        needs=needs,
    )


def _cached(name: str, summary: str, in_model: Inject, seen: str = "") -> Fault:
    inject = InModel(in_model, layered=False)
    return Fault(f"padding-cache-{name}", "padding", summary, seen, inject, law="cache.padded")


FAULTS = (
    _padding(
        "attended",
        "ignores the mask, and attends to padding like to any token",
        partial(_inject_mask, lambda real: torch.ones_like(real)),
    ),
    _padding(
        "mask-of-first-row",
        "uses the mask of the first row for all",
        partial(_inject_mask, lambda real: real[:1].expand_as(real)),
    ),
    _padding(
        "mask-inverted",
        "takes 1 for masked, as torch's key_padding_mask has it",
        partial(_inject_mask, lambda real: 1 - real),
    ),
    _padding(
        "mask-mirrored",
        "takes the mask for one of padding on the right",
        partial(_inject_mask, lambda real: real.flip(1)),
    ),
    _padding(
        "mask-early",
        "begins the mask one token early, so that the last padding is seen",
        partial(_inject_mask, lambda real: torch.cat([real[:, 1:], real[:, -1:]], 1)),
    ),
    _padding(
        "mask-late",
        "begins the mask one token late, so that the first real token is not seen",
        partial(_inject_mask, lambda real: torch.cat([real[:, :1], real[:, :-1]], 1)),
    ),
    _padding(
        "no-causal-mask",
        "has no causal mask where it is handed one of padding",
        _no_causal_mask,
    ),
    _padding(
        "positions-from-1",
        "begins to count positions at 1 after padding",
        _positions_from_1,
    ),
    _padding(
        "positions-of-first-row",
        "uses the positions of the first row for all",
        _positions_of_first_row,
    ),
    _padding(
        "positions-counted",
        "does not derive positions from the mask; positions.padding passes, and says so",
        _positions_counted,
        "transformers' GPT2LMHeadModel, whose generate() derives them instead",
        needs="positions can be handed over, so that it is a trap and no fault",
    ),
    _padding(
        "mask-added",
        "adds a mask of zeros and ones to the scores as it is",
        _mask_added,
    ),
    _padding(
        "mask-count",
        "reduces the mask to a count, and takes all padding to be on the left",
        _mask_count,
        "microsoft/DeepSpeed#1466",
        law="positions.masks",
    ),
    _padding(
        "positions-count",
        "counts positions from as many tokens as are masked, wherever they are",
        _positions_count,
        law="positions.masks",
    ),
    _padding(
        "between-seen",
        "masks only what is before the first real token",
        partial(_inject_mask, lambda real: real.long().cummax(1).values),
        law="positions.masks",
    ),
    _padding(
        "mask-type",
        "takes true for masked in a mask of truth values, and 0 in one of integers",
        _mask_type,
        law="positions.masks",
    ),
    _cached(
        "positions",
        "takes the length of the cache for a position, although some of it is padding",
        _cached_positions,
        "mosaicml/examples#257, unslothai/unsloth#4078",
    ),
    _cached(
        "attended",
        "attends to padding that is in the cache",
        _cached_attended,
    ),
    _cached(
        "ignored",
        "attends to padding that is in the cache, and counts it for positions",
        _cache_ignored,
    ),
)
