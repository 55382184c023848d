"""Ports that see what comes later: ``gpt_verify.faults.model``, altered in all layers or in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Allowed = Callable[[Tensor, Tensor], Tensor]
#: (targets [T, 1], sources [1, S]) → what a target sees besides the past.
More = Callable[[Tensor, Tensor], Tensor]


def _allow(model: Any, more: More, layers: Sequence[int] | None = None) -> None:
    """Let targets see more than what came before them."""
    for block in model.h if layers is None else model.blocks(layers):
        right: Allowed = block.attn.allowed
        block.attn.allowed = lambda targets, sources, right=right: (
            right(targets, sources) | more(targets[:, None], sources[None, :])
        )


def no_mask(model: Any) -> None:
    """There is no causal mask at all."""
    _allow(model, lambda targets, sources: torch.ones_like(targets == sources))


def mask_off_by_one(model: Any) -> None:
    """The triangle begins one above the diagonal: ``triu(2)``, or ``sources <= targets + 1``."""
    _allow(model, lambda targets, sources: sources == targets + 1)


def mask_off_by_one_in_one_layer(model: Any) -> None:
    """The same in the second layer only."""
    _allow(model, lambda targets, sources: sources == targets + 1, [1])


def diagonal_tiles_whole(model: Any) -> None:
    """A kernel works in tiles of four and skips the mask inside the tile on the diagonal."""
    _allow(model, lambda targets, sources: sources // 4 == targets // 4)


def tile_edge_leaks(model: Any) -> None:
    """The last row of the first tile of 64 is masked by the bound of the next one."""
    _allow(model, lambda targets, sources: (targets == 63) & (sources == 64), [1])


def token_64_is_seen(model: Any) -> None:
    """A tile that begins at 64 is compared by its first column with ``<=`` 64 instead of ``<``."""
    _allow(model, lambda targets, sources: (sources == 64) & (targets >= 32), [0])


def last_token_is_seen(model: Any) -> None:
    """A mask one column short is padded with what is not masked."""
    _allow(model, lambda targets, sources: sources == sources.max(), [0])


def one_head_is_not_masked(model: Any) -> None:
    """The mask is broadcast over all heads of the last layer but its last one."""
    attn = model.h[-1].attn
    right = attn.mask

    def mask(scores: Tensor, allowed: Tensor) -> Tensor:
        masked = right(scores, allowed)
        return torch.cat([masked[:, :-1], scores[:, -1:]], dim=1)

    attn.mask = mask


def mask_too_soft(model: Any) -> None:
    """Eight is subtracted from what is masked, and that is not enough."""
    for block in model.h:
        block.attn.mask = lambda scores, allowed: torch.where(allowed, scores, scores - 8)


def mask_of_minus_10000_under_huge_scores(model: Any) -> None:
    """10000 is subtracted, as in older ports, where scores are larger than that."""
    attn = model.h[0].attn
    attn.scale = lambda q: 1e5
    attn.mask = lambda scores, allowed: torch.where(allowed, scores, scores - 1e4)


def mask_after_scaling_by_zero(model: Any) -> None:
    """The mask multiplies the scores: a masked score is zero, not minus infinity."""
    for block in model.h:
        block.attn.mask = lambda scores, allowed: scores * allowed


def softmax_over_targets(model: Any) -> None:
    """The softmax is taken over the wrong axis, so that later targets share in the sum."""
    for block in model.h:
        block.attn.softmax = lambda scores: torch.softmax(scores, dim=-2)


def mask_after_the_softmax(model: Any) -> None:
    """Weights are set to zero after they were normalised: later tokens share in the sum."""
    for block in model.h:
        _mask_late(block.attn)


def _mask_late(attn: Any) -> None:
    right = attn.mix
    attn.mask = lambda scores, allowed: scores
    attn.mix = lambda pattern, v: right(pattern.tril(), v)


def norm_over_the_sequence(model: Any) -> None:
    """The mean of a layer norm is taken over all positions as well."""
    norm = model.h[1].ln_1

    def normalise(x: Tensor) -> Tensor:
        centred = x - x.mean((1, 2), keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred * torch.rsqrt(variance + norm.eps)

    norm.normalise = normalise


def residual_of_the_next_position(model: Any) -> None:
    """A thousandth of the next position's state leaks into each: a convolution padded wrongly."""
    block = model.h[1]
    right = block.wire

    def wire(x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        return right(torch.lerp(x, F.pad(x, (0, 0, 0, 1))[:, 1:], 1e-3), attend)

    block.wire = wire


def inputs_shifted(model: Any) -> None:
    """Labels are fed in place of inputs: each position is handed the token that it predicts."""
    right = model.embed
    model.embed = lambda ids, positions: right(ids.roll(-1, dims=-1), positions)


def softmax_in_half_precision(model: Any) -> None:
    """The softmax of the second layer is rounded to half precision."""
    model.h[1].attn.softmax = lambda scores: torch.softmax(scores.half(), dim=-1).to(scores.dtype)


def straight_through_mask(model: Any) -> None:
    """Weights are masked in the forward pass only; derivatives go through as if they were not."""
    for block in model.h:
        attn = block.attn
        right = attn.softmax

        def masked(scores: Tensor, allowed: Tensor, attn: Any = attn) -> Tensor:
            attn.kept = scores
            return type(attn).mask(attn, scores, allowed)

        def softmax(scores: Tensor, attn: Any = attn, right: Any = right) -> Tensor:
            open_ = right(attn.kept)
            return open_ + (right(scores) - open_).detach()

        attn.mask, attn.softmax = masked, softmax


class _Averaged(torch.autograd.Function):
    """Nothing forwards; backwards a thousandth of the mean over all positions is added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad + 1e-3 * grad.mean(1, keepdim=True)


def derivatives_averaged(model: Any) -> None:
    """A gradient that was reduced over the sequence is broadcast back into every position."""
    norm = model.h[0].ln_2
    right = norm.normalise
    norm.normalise = lambda x: right(_Averaged.apply(x))


def input_detached(model: Any) -> None:
    """The first block reads a copy of the embeddings that no derivative reaches."""
    right = model.h[0].wire
    model.h[0].wire = lambda x, attend: right(x.detach() + 0 * x, attend)
