"""Turned queries and keys in the checkpoint's order, whatever a module's own is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gpt_verify.reference.architecture import Rope
from gpt_verify.sites import Site

#: Of an attention factor: it is stored, and multiplied with a cosine, and with a channel.
_ROUNDINGS = 3


@dataclass(frozen=True)
class Begun:
    """What is known of queries or keys before they are turned.

    Attributes:
        first: [B, X], their position 0, in the checkpoint's order.
        order: the checkpoint's channel of each of the module's; None where they are the same.
    """

    first: torch.Tensor
    order: tuple[int, ...] | None


def in_its_order(
    value: torch.Tensor, begun: Begun, rope: Rope, site: Site, length: int
) -> torch.Tensor | None:
    """[B, T, X] in the checkpoint's order; None where this is none, or may be several.

    Position 0 is not turned, and tells what is what: which axis is the position, whether the
    channels of a pair were put elsewhere, and whether more than a turn was done.

    Args:
        value: what the module has.
        begun: before the turn.
        rope: the model's, of which the sizes count.
        site: what is to be shown.
        length: T.
    """
    first, found = begun.first, []
    if value.numel() != first.numel() * length or not value.is_floating_point():
        return None
    for rows in _rows(value, len(first), length):
        for order in _orders(begun.order, rope, site):
            if _unturned(_put(rows[:, 0], order), first, rope):
                found.append(_put(rows, order))
    if not found or any(not torch.equal(found[0], other) for other in found[1:]):
        return None
    return found[0]


def _unturned(shown: torch.Tensor, first: torch.Tensor, rope: Rope) -> bool:
    """Whether they are what they were, times the attention factor of a scaling."""
    factor = 1.0 if rope.scaling is None else rope.scaling.attention
    if factor == 1.0:
        return bool(torch.equal(shown, first.to(shown.dtype)))
    narrow = max(shown, first, key=lambda x: torch.finfo(x.dtype).eps)
    expected = factor * first.double()
    error = (shown.double() - expected).abs()
    return bool((error <= _ROUNDINGS * torch.finfo(narrow.dtype).eps / 2 * expected.abs()).all())


def _rows(value: torch.Tensor, batch: int, length: int) -> Iterator[torch.Tensor]:
    """[B, T, X], in each way in which this can be so."""
    for b in range(min(2, value.ndim)):
        for t in range(value.ndim):
            if t != b and value.shape[b] == batch and value.shape[t] == length:
                yield value.movedim((b, t), (0, 1)).flatten(2)


def _orders(
    order: tuple[int, ...] | None, rope: Rope, site: Site
) -> Iterator[tuple[int, ...] | None]:
    """The module's own order; the same with the channels of a pair side by side in the place of
    half of R apart, and the reverse."""
    yield order
    width = site.width
    own = torch.arange(width) if order is None else torch.tensor(order)
    by_head = own.reshape(site.heads, -1)
    turned, rest = by_head[:, : rope.size], by_head[:, rope.size :]
    for shape in ((2, -1), (-1, 2)):
        other = turned.reshape(site.heads, *shape).transpose(1, 2).flatten(1)
        yield tuple(torch.cat([other, rest], dim=1).reshape(-1).tolist())


def _put(x: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
    """Channels that lie in this order, in the checkpoint's."""
    if order is None:
        return x
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return x[..., back.to(x.device)]
