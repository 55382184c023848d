"""How a port lays out a tensor of the checkpoint.

A matrix of attention has more axes than two: the columns of ``c_attn`` are query, key and value,
heads, and channels of a head; the rows of ``c_proj`` are heads and channels. Ports move these axes
about (``[out, in]``; ``[head, in, size]``; q, k and v of each head side by side), and join
neighbours into one. A layout is the order of the axes; which of them are joined is no matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.config import Config

Array = NDArray[np.floating]

#: Axes of what a head computes, slowest first, in the checkpoint.
_OF_HEADS = ("q/k/v", "head", "size")
#: Other orders of these in use: ``[head, q/k/v, size]`` and ``[head, size, q/k/v]`` (two versions
#: of Megatron-LM's ``query_key_value``; GPT-NeoX and BLOOM keep the first).
_BY_HEAD = (("head", "q/k/v", "size"), ("head", "size", "q/k/v"))


@dataclass(frozen=True)
class Layout:
    """One tensor, or the query, key or value part of one, as a port keeps it.

    Attributes:
        shape: the checkpoint's, without axes of length 1.
        axes: names of the tensor's axes in the checkpoint's order; those of length 1 left out.
        sizes: their lengths.
        order: in which of them the port has, slowest first.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def plain(self) -> bool:
        """The axes are in the order of the checkpoint."""
        return self.order == tuple(range(len(self.order)))

    @property
    def transposed(self) -> bool:
        """``[out, in]``: nothing but that."""
        if self.plain:
            return False
        n_in = len(self.axes) - self._n_out
        return self.order == (*range(n_in, len(self.axes)), *range(n_in))

    @property
    def by_head(self) -> bool:
        """Query, key and value of a head lie side by side. A port that keeps them so and reads
        them in the checkpoint's order is wrong, and its weights alone do not tell."""
        inner = self.channels
        return inner != tuple(sorted(inner, key=_OF_HEADS.index))

    @property
    def channels(self) -> tuple[str, ...]:
        """The axes of the heads in the port's order."""
        return tuple(self.axes[i] for i in self.order if self.axes[i] in _OF_HEADS)

    @property
    def _n_out(self) -> int:
        n, size = 0, 1
        while size < self.shape[-1]:
            n += 1
            size = math.prod(self.sizes[-n:])
        return n

    def channel_axes(self) -> tuple[list[int], list[int]]:
        """The axes of the heads in what a product with ``c_attn`` makes where it lies as the
        parameter does: their lengths, and the order that makes them the checkpoint's."""
        inner = [i for i in self.order if self.axes[i] in _OF_HEADS]
        return [self.sizes[i] for i in inner], [int(i) for i in np.argsort(inner)]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a port's array of this shape can be it: neighbouring axes joined, or none."""
        sizes = [self.sizes[i] for i in self.order]
        if math.prod(shape) != math.prod(sizes):
            return False
        return set(_borders([n for n in shape if n != 1])) <= set(_borders(sizes))

    def to_port_layout(self, value: Array) -> Array:
        """Put an array of the checkpoint's shape into the port's order of axes: a view, an axis for
        each."""
        return value.reshape(self.sizes).transpose(self.order)

    def to_checkpoint_layout(self, value: Array) -> Array:
        """Put the port's array into the checkpoint's order of axes and shape."""
        sizes = [self.sizes[i] for i in self.order]
        return value.reshape(sizes).transpose(np.argsort(self.order)).reshape(self.shape)

    def __str__(self) -> str:
        if self.plain:
            return ""
        if self.transposed:
            return ", transposed"
        return f", as [{', '.join(self.axes[i] for i in self.order)}]"


def layouts(name: str, shape: Sequence[int], config: Config, part: bool = False) -> list[Layout]:
    """Those in which a tensor is looked for, the checkpoint's own first.

    Args:
        name: of the tensor, ``h0/attn/c_attn/w``.
        shape: of the tensor, or of a third of it.
        config: sizes of the heads.
        part: it is the query, key or value part of ``c_attn``.
    """
    axes, sizes = _factored(name, shape, config, part)
    named = [(axis, size) for axis, size in zip(axes, sizes, strict=True) if size != 1]
    axes, sizes = tuple(axis for axis, _ in named), tuple(size for _, size in named)
    squeezed = tuple(n for n in shape if n != 1)
    found = [Layout(squeezed, axes, sizes, order) for order in _orders(axes)]
    return sorted(found, key=lambda x: (not x.plain, not x.transposed, x.by_head, x.order))


def _factored(
    name: str, shape: Sequence[int], config: Config, part: bool
) -> tuple[Sequence[str], Sequence[int]]:
    heads = (config.n_head, config.head_size)
    if "/attn/c_attn/" in name:
        channels, sizes = (_OF_HEADS[1:], heads) if part else (_OF_HEADS, (3, *heads))
        return (*("in",) * (len(shape) - 1), *channels), (*shape[:-1], *sizes)
    if name.endswith("/attn/c_proj/w"):
        return (*_OF_HEADS[1:], "out"), (*heads, shape[-1])
    return ("in", "out")[-len(shape) :], shape


def _orders(axes: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """Whatever keeps the axes of the heads in an order that somebody uses."""
    known = [_OF_HEADS, *_BY_HEAD]
    allowed = {tuple(axis for axis in order if axis in axes) for order in known}
    if "q/k/v" not in axes:
        allowed = {tuple(axis for axis in _OF_HEADS if axis in axes)}
    for order in permutations(range(len(axes))):
        if tuple(axes[i] for i in order if axes[i] in _OF_HEADS) in allowed:
            yield order


def _borders(sizes: Sequence[int]) -> list[int]:
    """The borders between one axis and the next, in elements of the fastest."""
    return [math.prod(sizes[i:]) for i in range(1, len(sizes))]
