"""What a piece of memory holds while a torch module runs, and which sites follow from that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_verify.matching.assembly import Assembly, Form, Patch, vectors
from gpt_verify.matching.placement import Placement
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table
from gpt_verify.sites import Site, readers, sites

#: A site that a product with several tensors makes beside others, its places among them, and which
#: channels these are (None for all, as in the checkpoint).
Side = tuple[str, tuple[int, ...], tuple[int, ...] | None]
#: Rows and columns, each of as many as a piece of memory has elements.
Cells = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True)
class Role:
    """What a piece of memory holds: one tensor of the checkpoint, or a part of it.

    Attributes:
        tensor: the checkpoint's name.
        readers: the sites whose operations read the tensor.
        columns: which channels a product with it makes, in its order: of the query, key or value
            part of ``c_attn`` a third of them; None where they are all, as in the checkpoint.
        rows: the same of what is multiplied with it.
        shares: of a parameter that is several tensors, each of them with the places that what a
            product with it makes has side by side with the others.
        by_rows: the memory of such a parameter has one place after the other.
        copied: its rows are in their order by a copy. So is what is multiplied with it, where that
            was copied for it (``einsum``), and otherwise the matrix is read in another order.
        cells: of a matrix, the row and the column of the checkpoint's that each element of the
            memory is, in the memory's order; None where that is not known.
    """

    tensor: str
    readers: tuple[Site, ...] = ()
    columns: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    shares: tuple[tuple[Role, tuple[int, ...]], ...] = ()
    by_rows: bool = False
    copied: bool = False
    cells: Callable[[], Cells | None] | None = field(default=None, compare=False, repr=False)

    @property
    def sides(self) -> tuple[Side, ...]:
        """What a product with a parameter that is several tensors makes."""
        made = ((role.output, places, role.columns) for role, places in self.shares)
        return tuple((site, *rest) for site, *rest in made if site is not None)  # type: ignore[misc]

    def cut(self, first: int, count: int, size: int) -> Role | None:
        """What some of the memory of several tensors holds, if that is several of them, whole."""
        of = sum(len(places) for _, places in self.shares)
        each = size // of
        if not self.by_rows or size % of or first % each or count % each:
            return None
        begin, end = first // each, (first + count) // each
        inside = tuple(
            (role, tuple(at - begin for at in places))
            for role, places in self.shares
            if begin <= places[0] and places[-1] < end
        )
        if len(inside) < 2 or sum(len(places) for _, places in inside) != end - begin:
            return None
        return fusion(inside, by_rows=True)

    def narrowed(self, first: int, count: int, size: int) -> Role:
        """The part of a bias that is read at once."""
        if self.leaf != "b" or count >= size or not self.readers:
            return self
        columns = range(size) if self.columns is None else self.columns
        return replace(self, columns=tuple(columns[first : first + count]))

    @property
    def layer(self) -> int | None:
        found = re.match(r"h(\d+)/", self.tensor)
        return int(found[1]) if found else None

    @property
    def leaf(self) -> str:
        return self.tensor.rsplit("/", 1)[-1]

    @property
    def is_matrix(self) -> bool:
        """Whether a product may be with it."""
        return self.leaf == "w" or self.is_table

    @property
    def is_table(self) -> bool:
        """Whether it is [V, D]."""
        return self.tensor in ("wte", "lm_head")

    @property
    def output(self) -> str | None:
        """The site that an operation with this parameter makes."""
        made = (r for r in self.readers if r.looks_up or (r.is_product and not r.is_logits))
        return next((r.name for r in made), None)

    @property
    def input(self) -> str | None:
        """The site that a product with this matrix reads."""
        return next((r.inputs[0] for r in self.readers if r.is_product), None)

    @property
    def normalised(self) -> str | None:
        """The state of the residual stream that a layer norm with this gain reads."""
        return next((r.inputs[0] for r in self.readers if r.centres), None)


def role_of(placement: Placement, config: Config) -> Role:
    """The role of a parameter that was placed whole."""
    columns, width = None, config.n_embd
    if placement.part is not None:
        columns = tuple(range(placement.part * width, (placement.part + 1) * width))
    cells = partial(_cells_of_placement, placement, tensor_table(config)[placement.tensor].shape)
    return Role(placement.tensor, readers(config)[placement.tensor], columns, cells=cells)


def _coordinates(shape: tuple[int, ...]) -> Cells | None:
    """Row and column of each element of a matrix of the checkpoint, or of a vector, which is one
    row; None of a stack of matrices."""
    axes = [n for n in shape if n != 1]
    if not 1 <= len(axes) <= 2:
        return None
    rows = np.arange(axes[0] if len(axes) == 2 else 1, dtype=np.int32)[:, None]
    columns = np.arange(axes[-1], dtype=np.int32)
    full = (len(rows), len(columns))
    made = np.broadcast_to(rows, full), np.broadcast_to(columns, full)
    return made[0].reshape(axes), made[1].reshape(axes)


def _cells_of_placement(placement: Placement, shape: tuple[int, ...]) -> Cells | None:
    if (known := _coordinates(shape)) is None:
        return None
    # Whole numbers in the place of the tensor's: where they come to lie.
    lie: Callable[[Any], Any] = placement.expected
    rows, columns = (lie({placement.tensor: of}).reshape(-1) for of in known)
    return rows, columns


def _cells_of_patch(patch: Patch, assembly: Assembly, source: torch.Size) -> Cells | None:
    if (known := _coordinates(assembly.shape)) is None:
        return None
    made = []
    put: Callable[[Any, Any], Any] = patch.put
    lie: Callable[[Any, Form], Any] = vectors
    for of in known:
        every = np.full(tuple(source), -1, np.int32)
        laid = put(every, lie(of, assembly.form)[patch.channels])
        held = _memory_of(patch, torch.from_numpy(laid))
        assert held is not None, "it was one piece of memory before"
        made.append(held.numpy().reshape(-1))
    return made[0], made[1]


def shares(
    assembly: Assembly, held: Mapping[str, torch.Tensor], config: Config
) -> Iterator[tuple[torch.Tensor, Role]]:
    """The pieces of a tensor with what each holds, as far as each is one piece of memory."""
    for patch in assembly.patches:
        source = held[patch.source]
        tensor = _memory_of(patch, source)
        if tensor is not None:
            role = _role_of_patch(patch, assembly, config)
            yield (
                tensor,
                replace(role, cells=partial(_cells_of_patch, patch, assembly, source.shape)),
            )


def fused(
    assemblies: Iterable[Assembly], held: Mapping[str, torch.Tensor], config: Config
) -> Iterator[tuple[torch.Tensor, Role]]:
    """The parameters that are several tensors, to be multiplied with at once: queries, keys and
    values, or gate and up, one after the other or in turns."""
    found: dict[str, list[tuple[Role, Patch]]] = {}
    for assembly in assemblies:
        if assembly.form in ("columns", "elements"):
            for patch in assembly.patches:
                if not patch.whole:
                    role = _role_of_patch(patch, assembly, config)
                    found.setdefault(patch.source, []).append((role, patch))
    for source, parts in found.items():
        if len(parts) > 1 and all(role.output is not None for role, _ in parts):
            whole, last = held[source], held[source].ndim - 1
            shares_of = [(role, tuple(int(at) for at in patch.at)) for role, patch in parts]
            by_rows = whole.is_contiguous() and all(p.axis in (None, last) for _, p in parts)
            yield whole, fusion(sorted(shares_of, key=lambda share: share[1]), by_rows)


def fusion(shares: Sequence[tuple[Role, tuple[int, ...]]], by_rows: bool) -> Role:
    """The role of what holds several tensors: that of the first of them, and all the others'."""
    return replace(shares[0][0], columns=None, shares=tuple(shares), by_rows=by_rows)


def _role_of_patch(patch: Patch, assembly: Assembly, config: Config) -> Role:
    channels = np.sort(patch.channels) if assembly.ordered else patch.channels
    order: tuple[int, ...] | None = tuple(int(c) for c in channels)
    if order == tuple(range(assembly.shape[-1 if assembly.form != "rows" else 0])):
        order = None
    rows = order if assembly.form == "rows" else None
    columns = order if assembly.form in ("columns", "elements") else None
    return Role(assembly.tensor, readers(config)[assembly.tensor], columns, rows)


def _memory_of(patch: Patch, source: torch.Tensor) -> torch.Tensor | None:
    if patch.whole:
        return source
    first, last = int(patch.at[0]), int(patch.at[-1]) + 1
    if last - first != len(patch.at) or not source.is_contiguous():
        return None
    if patch.axis is None or patch.axis == source.ndim - 1:
        return source.view(patch.of, -1)[first:last]
    each = patch.of // len(source)  # of them in each slice along the first axis
    if patch.axis == 0 or first % each or last % each:
        return None
    return source[first // each : last // each]


@dataclass
class Memory:
    """Roles by address: storage → (first element, one past the last, role)."""

    spans: dict[int, list[tuple[int, int, Role]]] = field(default_factory=dict)
    kept: list[torch.Tensor] = field(default_factory=list)

    def put(self, tensor: torch.Tensor, role: Role) -> None:
        start = tensor.storage_offset()
        span = (start, start + tensor.numel(), role)
        self.spans.setdefault(address(tensor), []).append(span)

    def carry(self, original: torch.Tensor, copy: torch.Tensor, as_it_lies: bool = True) -> None:
        """What lies in a tensor lies in a copy of it: several roles, where it is a stack.

        Args:
            original: or a view of it.
            copy: has the same elements in the order of the view.
            as_it_lies: the order is that of the memory; otherwise it may be another one.
        """
        first, moved = original.storage_offset(), copy.storage_offset() - original.storage_offset()
        spans = list(self.spans.get(address(original), ()))
        if not as_it_lies and len(strided(original)) > 2:
            role = self.get(original)
            if role is not None:
                start = next(start for start, end, _ in spans if start <= first < end)
                at = copy.storage_offset()
                span = (at, at + copy.numel(), _reordered(role, original, start))
                self.spans.setdefault(address(copy), []).append(span)
            return
        for start, end, role in spans:
            if start < first + original.numel() and first < end:
                if not (as_it_lies or original.is_contiguous()):
                    role = replace(role, cells=None)  # transposed
                span = (start + moved, end + moved, role)
                self.spans.setdefault(address(copy), []).append(span)

    def get(self, tensor: torch.Tensor) -> Role | None:
        at, count = tensor.storage_offset(), tensor.numel()
        for start, end, role in self.spans.get(address(tensor), ()):
            if not start <= at < end:
                continue
            if not role.shares:
                return role.narrowed(at - start, count, end - start)
            held = role if count == end - start else role.cut(at - start, count, end - start)
            if held is not None:
                return held
        return None


#: Size and stride of an axis.
Axis = tuple[int, int]


def strided(view: torch.Tensor) -> list[Axis]:
    """The axes of a view; neighbours that lie as one are one. A matrix has two, transposed or not;
    one of which the heads and channels are exchanged has three."""
    found: list[Axis] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = found[-1][0] * size, stride
        else:
            found.append((size, stride))
    return found


def _reordered(role: Role, view: torch.Tensor, start: int) -> Role:
    """The role of a copy in the order of a view. Where the copy is no matrix whose rows and columns
    are whole, nothing is known of what is multiplied with it.

    Args:
        role: of the memory.
        view: of it.
        start: of that memory within its storage.
    """
    unknown = replace(role, readers=(), cells=None)
    cells = None if role.cells is None or role.shares else role.cells()
    if cells is None:
        return unknown
    at = np.full(tuple(view.shape), view.storage_offset() - start)
    for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        at += (np.arange(size) * stride).reshape([-1] + [1] * (view.ndim - 1 - axis))
    if at.min() < 0 or at.max() >= cells[0].size:
        return unknown
    rows, columns = (of[at.reshape(-1)] for of in cells)
    if min(rows.min(), columns.min()) < 0:
        return unknown  # something else lies among it
    n_in, n_out = (np.count_nonzero(np.bincount(of)) for of in (rows, columns))
    if n_in * n_out != rows.size:
        return unknown
    in_by_out = rows.reshape(n_in, n_out), columns.reshape(n_in, n_out)
    out_by_in = rows.reshape(n_out, n_in).T, columns.reshape(n_out, n_in).T
    for rows_IO, columns_IO in (in_by_out, out_by_in):
        if (rows_IO == rows_IO[:, :1]).all() and (columns_IO == columns_IO[:1]).all():
            order = _order(rows_IO[:, 0], role.rows)
            columns_of = _order(columns_IO[0], role.columns)
            return replace(
                role, rows=order, columns=columns_of, copied=order is not None, cells=None
            )
    return unknown


def _order(channels: NDArray[np.int32], before: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """None where they are all that there are, as in the checkpoint."""
    whole = before is None and np.array_equal(channels, np.arange(len(channels)))
    return None if whole else tuple(channels.tolist())


def address(tensor: torch.Tensor) -> int:
    """Equal for every view of one piece of memory."""
    return int(tensor.untyped_storage().data_ptr())


def sums(config: Config) -> dict[str, str]:
    """Site of a projection → the residual stream after it, which is nothing but their sum:
    ``h.3.attn.out`` → ``h.3.resid_mid``."""
    table = sites(config).values()
    added = {s.inputs[1]: s.name for s in table if s.is_sum and len(s.inputs) == 2}
    return {name: state for name, state in added.items() if sites(config)[name].weights}
