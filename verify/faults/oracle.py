"""The oracle with some operations replaced: what a model with a fault would compute.

It runs the table of sites (``gpt_verify.sites``), each with the reference's own operation unless it
is overridden. An override sees what the operation sees, and everything that was computed before it,
so that wrong wiring can be written as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        tokens_T: the sequence.
        values: every site before it, at least back to the beginning of the block before.
        lookup: checkpoint name → tensor.
        dtype: what the arithmetic is done in.
    """

    config: Config
    site: Site
    tokens_T: NDArray[np.integer]
    values: Mapping[str, Array]
    lookup: Callable[[str], Array]
    dtype: type[np.floating] = np.float64

    @property
    def x(self) -> Array:
        """The first input."""
        return self.values[self.site.inputs[0]]

    @property
    def layer(self) -> int:
        """Of a site that has one."""
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
        """q, k and v of this layer, each [H, T, K]."""
        return ops.split_heads(self.at("attn.qkv"), self.config.n_head)


#: What an operation becomes.
Act = Callable[[Call], Array]


def right(call: Call) -> Array:
    """What the operation should be: the reference's."""
    return _OPERATIONS[call.site.operation](call)


_OPERATIONS: dict[str, Act] = {
    "embed": lambda c: ops.embed(c.tokens_T, c.lookup("wte"), c.lookup("wpe"), c.dtype),
    "layer_norm": lambda c: ops.layer_norm(c.x, c.own(0), c.own(1)),
    "linear": lambda c: ops.linear(c.x, c.own(0), c.own(1)),
    "scores": lambda c: ops.attention_scores(*c.heads()[:2]),
    "pattern": lambda c: ops.causal_softmax(c.x),
    "mix": lambda c: ops.attention_mix(c.x, c.heads()[2]),
    "gelu": lambda c: ops.gelu(c.x),
    "add": lambda c: c.x + c.values[c.site.inputs[1]],
    "unembed": lambda c: ops.unembed(c.x, c.own(0)),
}


def run(
    lookup: Callable[[str], Array],
    config: Config,
    tokens_T: NDArray[np.integer],
    overrides: Mapping[str, Act],
    dtype: type[np.floating] = np.float64,
    start: Mapping[str, Array] | None = None,
    keep: int | None = 25,
) -> Iterator[tuple[str, Array]]:
    """The forward pass with some operations replaced; yields ``(site, value)`` in order.

    Args:
        lookup: checkpoint name → tensor.
        config: sizes.
        tokens_T: one sequence.
        overrides: site → what it becomes.
        dtype: what the arithmetic is done in.
        start: sites that are known already, from the first on without a gap; they are not computed
            and not yielded. What lies before the first override need not be computed twice.
        keep: how many sites an override can look back: by default this block and the one before;
            None for all.
    """
    values: dict[str, Array] = dict(start or {})
    order = list(sites(config).values())
    for i, site in enumerate(order):
        if start is not None and site.name in start:
            continue
        call = Call(config, site, tokens_T, values, lookup, dtype)
        value = np.asarray(overrides.get(site.name, right)(call), dtype)
        values[site.name] = value
        if keep is not None and i >= keep:
            values.pop(order[i - keep].name, None)
        yield site.name, value
