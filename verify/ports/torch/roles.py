"""What a piece of memory holds while a torch module runs, and which sites follow from that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites


@dataclass(frozen=True)
class Role:
    """What a piece of memory holds: one tensor of the checkpoint, or a part of ``c_attn``.

    Attributes:
        tensor: the checkpoint's name.
        part: 0, 1 or 2 where it is the query, key or value part of ``c_attn`` alone.
        readers: the sites whose operations read the tensor.
    """

    tensor: str
    part: int | None = None
    readers: tuple[Site, ...] = ()

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
        return next((r.name for r in self.readers if r.operation in ("embed", "linear")), None)

    @property
    def input(self) -> str | None:
        """The site that a product with this matrix reads."""
        products = (r for r in self.readers if r.operation in ("linear", "unembed"))
        return next((r.inputs[0] for r in products), None)

    @property
    def normalised(self) -> str | None:
        """The state of the residual stream that a layer norm with this gain reads."""
        return next((r.inputs[0] for r in self.readers if r.operation == "layer_norm"), None)


@dataclass
class Memory:
    """Roles by address: storage → (first element, one past the last, role)."""

    spans: dict[int, list[tuple[int, int, Role]]] = field(default_factory=dict)
    kept: list[torch.Tensor] = field(default_factory=list)

    def put(self, tensor: torch.Tensor, role: Role) -> None:
        start = tensor.storage_offset()
        span = (start, start + tensor.numel(), role)
        self.spans.setdefault(address(tensor), []).append(span)

    def carry(self, original: torch.Tensor, copy: torch.Tensor) -> None:
        """What lies in a tensor lies in a copy of it: several roles, where it is a stack."""
        first, moved = original.storage_offset(), copy.storage_offset() - original.storage_offset()
        spans = list(self.spans.get(address(original), ()))
        for start, end, role in spans:
            if start < first + original.numel() and first < end:
                span = (start + moved, end + moved, role)
                self.spans.setdefault(address(copy), []).append(span)

    def get(self, tensor: torch.Tensor) -> Role | None:
        at = tensor.storage_offset()
        for start, end, role in self.spans.get(address(tensor), ()):
            if start <= at < end:
                return role
        return None


def address(tensor: torch.Tensor) -> int:
    """Equal for every view of one piece of memory."""
    return int(tensor.untyped_storage().data_ptr())


def sums(config: Config) -> dict[str, str]:
    """Site of a projection → the residual stream after it, which is nothing but their sum:
    ``h.3.attn.out`` → ``h.3.resid_mid``."""
    table = sites(config).values()
    added = {s.inputs[1]: s.name for s in table if s.operation == "add" and len(s.inputs) == 2}
    return {name: state for name, state in added.items() if sites(config)[name].weights}
