"""The places in the checkpoint at which the parameters of a port were found, and how a report names
them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Place
from gpt_verify.matching.layouts import Layout
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.weights import QKV, split_qkv

Array = NDArray[np.floating]

#: The tensor of a head that is not wte.
HEAD = "lm_head"
#: What the report says of the rows of a table beyond the vocabulary.
PADDING = "padding of the vocabulary: neither it nor its logits are looked at"
#: And of a parameter that was not placed.
SURPLUS = "no tensor of the checkpoint"


@dataclass(frozen=True)
class Placement:
    """One parameter of a port and the tensor that it is.

    Attributes:
        parameter: the port's name.
        tensor: the checkpoint's name.
        layout: how the port keeps it.
        part: 0, 1 or 2 where the parameter is the query, key or value part of ``c_attn`` alone.
        exact: equal bit for bit.
        head: a second matrix for ``wte``: an output head of its own.
        alike: how many tensors it equals, one of which was chosen by name.
        distance: of one that equals none, how far the values are from the tensor's (RMS, in units
            of the tensor's own; of a sample).
        lies: of one that was put together before: how it lies in the port.
    """

    parameter: str
    tensor: str
    layout: Layout
    part: int | None = None
    exact: bool = True
    head: bool = False
    alike: int = 1
    distance: float | None = None
    lies: str = ""

    @property
    def stands_for(self) -> str:
        """The tensor whose place it takes: ``lm_head`` for a head of its own."""
        return HEAD if self.head else self.tensor

    @property
    def transposed(self) -> bool:
        """The port keeps ``[out, in]``."""
        return self.layout.transposed

    def expected(self, weights: DeclaredWeights) -> Array:
        """The tensor in the port's layout, an axis for each of ``layout.axes``, or a matrix."""
        value = self.of(weights[self.tensor])
        if self.layout.plain:
            return squeeze(value)
        return squeeze(value).T if self.transposed else self.layout.to_port_layout(value)

    def of(self, value: Array) -> Array:
        """The part of a whole tensor that the parameter is, in the checkpoint's layout."""
        return value if self.part is None else split_qkv(value)[self.part]

    @property
    def place(self) -> Place:
        """The same for the report."""
        part = "" if self.part is None else f" ({QKV[self.part]})"
        head = ", a head of its own" if self.head else ""
        note = "" if self.exact else ", by shape and name: the values differ"
        if self.distance is not None:
            note += f" by {self.distance:.2g} of theirs"
        if self.alike > 1:
            note = f", by name: {self.alike} tensors are equal to it"
        sure = self.exact and self.alike == 1
        return Place(self.tensor, f"{part}{self.layout}{self.lies}{head}{note}", sure)

    def __str__(self) -> str:
        return str(self.place)


@dataclass(frozen=True)
class Matching:
    """The result: where each parameter went, and what was left on either side.

    Attributes:
        placements: what was placed.
        surplus: parameters that are no tensor.
        missing: tensors, or parts of ``c_attn``, that no parameter is.
        padding: what the port says is padding.
    """

    placements: tuple[Placement, ...]
    surplus: tuple[str, ...]
    missing: tuple[str, ...]
    padding: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Every tensor was found bit for bit, and nothing is left over."""
        return not (self.surplus or self.missing) and all(p.exact for p in self.placements)

    def places(self) -> dict[str, Place]:
        """The place of each parameter, for the report."""
        found = {placement.parameter: placement.place for placement in self.placements}
        found |= dict.fromkeys(self.padding, Place(None, PADDING, sure=False))
        return found | dict.fromkeys(self.surplus, Place(None, SURPLUS, sure=False))


def squeeze(value: Array) -> Array:
    """Axes of length 1 carry nothing: OpenAI's [1, in, out] is [in, out]."""
    return value.reshape([n for n in value.shape if n != 1])
