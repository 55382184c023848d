"""What an operation is handed, to compute its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.heads import Part, split
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

Array = NDArray[np.floating]


@dataclass
class Call:
    """One operation about to be computed.

    Attributes:
        config: sizes.
        site: what it makes, from what, with which tensors.
        tokens_T: the sequence; of several rows one after the other, int[R · T].
        values: every site before it, at least back to the beginning of the block before.
        lookup: checkpoint name → tensor.
        dtype: what the arithmetic is done in.
        rows: R, how many sequences of one length lie one below the other in every value; scores
            and patterns are [R · H, T, S].
    """

    config: Config
    site: Site
    tokens_T: NDArray[np.integer]
    values: Mapping[str, Array]
    lookup: Callable[[str], Array]
    dtype: type[np.floating] = np.float64
    rows: int = 1

    @property
    def x(self) -> Array:
        """The first input."""
        return self.values[self.site.inputs[0]]

    @property
    def layer(self) -> int:
        """The layer of a site that has one."""
        assert self.site.layer is not None, f"{self.site.name} belongs to no layer"
        return self.site.layer

    def at(self, kind: str, layer: int | None = None) -> Array:
        """Another site of the same layer: ``resid_mid``; of another layer where one is given."""
        return self.values[f"h.{self.layer if layer is None else layer}.{kind}"]

    def stream(self) -> Array:
        """The residual stream that enters this block."""
        return self.values[sites(self.config)[f"h.{self.layer}.resid_mid"].inputs[0]]

    def w(self, name: str) -> Array:
        """A tensor by its checkpoint name."""
        return np.asarray(self.lookup(name), self.dtype)

    def own(self, index: int = 0) -> Array:
        """The tensors that the operation reads: 0 is the matrix or the gain, 1 the bias."""
        return self.w(self.site.weights[index])

    def heads(self) -> tuple[Array, Array, Array]:
        """q, k and v of this layer, each [R · H, T, K]: rows read from each other as little as
        heads do. Of a model that has them in one site."""
        q, k, v = map(self._by_row, ops.split_heads(self.at("attn.qkv"), self.config.n_head))
        return q, k, v

    def part(self, part: Part) -> Array:
        """One of them, of the scores or of the mix in any model: what the operation reads first is
        the queries, what last the keys or values."""
        read = self.values[self.site.inputs[0 if part == "q" else -1]]
        return self._by_row(split(self.config, read, part))

    def _by_row(self, x_HNK: Array) -> Array:
        heads, _, size = x_HNK.shape
        split: Array = x_HNK.reshape(heads, self.rows, -1, size).swapaxes(0, 1)
        return split.reshape(self.rows * heads, -1, size)


#: Computes what a site is.
Override = Callable[[Call], Array]
