"""Which tensors lie in the same memory, whatever their shapes: a tied head may be a view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First element in the storage, and one past the last."""
    if not tensor.numel():
        return tensor.storage_offset(), tensor.storage_offset()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.storage_offset(), tensor.storage_offset() + int(last) + 1


def clusters(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Distinct tensors, those whose memory overlaps together."""
    distinct = {id(tensor): tensor for tensor in tensors}.values()
    by_place: dict[tuple[int, torch.dtype], list[torch.Tensor]] = {}
    for tensor in distinct:
        key = (tensor.untyped_storage().data_ptr(), tensor.dtype)
        by_place.setdefault(key, []).append(tensor)
    found: list[list[torch.Tensor]] = []
    for sharing in by_place.values():
        end = -1
        for tensor in sorted(sharing, key=extent):
            first, last = extent(tensor)
            if first < end:
                found[-1].append(tensor)
            else:
                found.append([tensor])
            end = max(end, last)
    return found


def span(cluster: Sequence[torch.Tensor]) -> tuple[int, int]:
    """First element of any of them, and how many elements lie from there to the last."""
    extents = [extent(tensor) for tensor in cluster]
    first = min(start for start, _ in extents)
    return first, max(end for _, end in extents) - first


def view_like(flat: torch.Tensor, tensor: torch.Tensor, first: int) -> torch.Tensor:
    """The part of ``flat``, whose element 0 stands for element ``first`` of a storage, that lies as
    ``tensor`` does in that storage."""
    at = flat.storage_offset() + tensor.storage_offset() - first
    return flat.as_strided(tensor.shape, tensor.stride(), at)
