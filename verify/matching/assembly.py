"""A tensor that a port keeps in pieces: rows or columns of it, side by side with others.

A list of heads with a layer for each of q, k and v, one matrix for k and v, neurons in another
order: what all of these leave whole is the row, or the column, of a matrix. An assembly says where
each of them lies, and is one parameter in the checkpoint's own layout: reading gathers, writing
scatters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt_verify.port import Parameter

Array = NDArray[np.floating]
Ints = NDArray[np.int64]

#: What is found as one: rows of a matrix, its columns, elements of a vector, or a vector whole.
Form = Literal["rows", "columns", "elements", "whole"]


@dataclass(frozen=True)
class Patch:
    """The part of a tensor that one parameter holds.

    Attributes:
        source: name of the parameter.
        axis: of it along which a row or column lies; None where each element is one.
        of: how many rows or columns the parameter has in all.
        at: which of these are the tensor's, ascending.
        channels: which of the tensor's they are.
    """

    source: str
    axis: int | None
    of: int
    at: Ints
    channels: Ints

    @property
    def whole(self) -> bool:
        """Whether the parameter holds nothing else."""
        return len(self.at) == self.of

    @property
    def straight(self) -> bool:
        """Whether they lie in the checkpoint's order."""
        return bool((np.diff(self.channels) > 0).all())

    @property
    def straightened(self) -> Patch:
        return replace(self, channels=np.sort(self.channels))

    def taken(self, value: Array) -> Array:
        """The parameter's values that are the tensor's, one row each."""
        return laid(value, self.axis)[self.at]

    def put(self, value: Array, vectors: Array) -> Array:
        """The parameter's values with these in their place."""
        rows = np.array(laid(value, self.axis))
        rows[self.at] = vectors
        if self.axis is None:
            return rows.reshape(value.shape)
        moved = np.moveaxis(value, self.axis, -1).shape
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), -1, self.axis))

    def __str__(self) -> str:
        if self.whole:
            return self.source
        first, last = int(self.at[0]), int(self.at[-1])
        dense = last - first + 1 == len(self.at)
        return f"{self.source}[{first}:{last + 1}{'' if dense else ', in part'}]"


@dataclass(frozen=True)
class Assembly:
    """One tensor out of pieces.

    Attributes:
        tensor: the checkpoint's name.
        shape: the checkpoint's, without axes of length 1.
        form: what the pieces are made of.
        patches: the pieces.
        ordered: the port puts them in the checkpoint's order before it uses them.
    """

    tensor: str
    shape: tuple[int, ...]
    form: Form
    patches: tuple[Patch, ...]
    ordered: bool = False

    @property
    def name(self) -> str:
        """The name of the parameter that it is: all of the names, or the first and the last."""
        names = [str(patch) for patch in self.patches]
        if len(names) < 4:
            return " + ".join(names)
        return f"{names[0]} + … + {names[-1]} ({len(names)} parameters)"

    @property
    def _description(self) -> str:
        """What the report says of it; a vector that lies among others is said by its name."""
        if self.form == "whole":
            return ""
        if self.straight:
            return f", put together of its {self.form}"
        return f", its {self.form} in another order"

    @property
    def straight(self) -> bool:
        """Whether each parameter has its share in the checkpoint's order."""
        return all(patch.straight for patch in self.patches)

    @property
    def straightened(self) -> Assembly:
        """The same parameters, taken to lie in the checkpoint's order."""
        return replace(self, patches=tuple(patch.straightened for patch in self.patches))

    @property
    def order(self) -> tuple[int, ...]:
        """The channels in the order of the port's parameters."""
        return tuple(int(c) for patch in self.patches for c in patch.channels)

    def read(self, held: Mapping[str, Parameter]) -> Array:
        """The tensor as the port has it."""
        values = [patch.taken(held[patch.source].read()) for patch in self.patches]
        made = np.empty(self.shape, np.result_type(*values))
        for patch, value in zip(self.patches, values, strict=True):
            vectors(made, self.form)[patch.channels] = value
        return made

    def write(self, held: Mapping[str, Parameter], value: Array) -> None:
        """Every row or column to where it lies."""
        for patch in self.patches:
            source = held[patch.source]
            assert source.write is not None, "what cannot be written to is not offered"
            given = vectors(value.reshape(self.shape), self.form)[patch.channels]
            source.write(patch.put(source.read(), given))

    def scattered(self, source: str, value: Array) -> Array:
        """What belongs to one parameter as a share of the whole, zero elsewhere."""
        made = np.zeros(self.shape, value.dtype)
        for patch in self.patches:
            if patch.source == source:
                vectors(made, self.form)[patch.channels] = patch.taken(value)
        return made

    def parameter(self, held: Mapping[str, Parameter]) -> Parameter:
        """It as one parameter of the port."""
        sources = [held[patch.source] for patch in self.patches]
        writable = all(source.write is not None for source in sources)
        return Parameter(
            self.name,
            self.shape,
            lambda: self.read(held),
            (self.tensor, *(source.storage for source in sources)),
            implies=self.tensor,
            lies=self._description,
            write=(lambda value: self.write(held, value)) if writable else None,
        )


def with_assemblies(
    parameters: Sequence[Parameter], assemblies: Sequence[Assembly]
) -> Iterator[Parameter]:
    """The parameters of a port, assemblies in place of what they are made of."""
    held = {parameter.name: parameter for parameter in parameters}
    used = {held[p.source].storage for assembly in assemblies for p in assembly.patches}
    yield from (p for p in parameters if p.storage not in used)
    for assembly in assemblies:
        yield assembly.parameter(held)


def vectors(tensor: Array, form: Form) -> Array:
    """A view of a tensor, one row for each that is found by itself."""
    if form == "columns":
        return tensor.T
    if form == "elements":
        return tensor[:, None]
    return tensor[None] if form == "whole" else tensor


def laid(value: Array, axis: int | None) -> Array:
    """The same of a parameter, along one of its axes; a copy where that is no view."""
    if axis is None:
        return value.reshape(-1, 1)
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
