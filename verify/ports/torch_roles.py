"""What a piece of memory holds while a torch module runs, and which sites follow from that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

#: Tensor of the checkpoint (without its layer) → (site that enters its product, site that leaves).
PRODUCTS = {
    "attn/c_attn": ("ln_1", "attn.qkv"),
    "attn/c_proj": ("attn.mix", "attn.out"),
    "mlp/c_fc": ("ln_2", "mlp.pre"),
    "mlp/c_proj": ("mlp.act", "mlp.out"),
}
#: Site of a projection → the residual stream after it.
SUMS = {"attn.out": "resid_mid", "mlp.out": "resid_post"}


@dataclass(frozen=True)
class Role:
    """What a piece of memory holds: one tensor of the checkpoint, or a part of ``c_attn``."""

    tensor: str
    part: int | None = None

    @property
    def layer(self) -> int | None:
        found = re.match(r"h(\d+)/", self.tensor)
        return int(found[1]) if found else None

    @property
    def kind(self) -> str:
        """``attn/c_attn``, ``ln_1``, ``wte`` …"""
        return re.sub(r"^h\d+/|/[wbg]$", "", self.tensor)

    @property
    def leaf(self) -> str:
        return self.tensor.rsplit("/", 1)[-1]

    @property
    def output(self) -> str | None:
        """The site that an operation with this parameter makes."""
        if self.kind in ("wte", "wpe"):
            return "embed"
        if self.kind in PRODUCTS:
            return f"h.{self.layer}.{PRODUCTS[self.kind][1]}"
        return None

    @property
    def input(self) -> str | None:
        """The site that a product with this matrix reads."""
        if self.kind == "wte":
            return "ln_f"
        return f"h.{self.layer}.{PRODUCTS[self.kind][0]}" if self.kind in PRODUCTS else None

    @property
    def normalised(self) -> str:
        """The state of the residual stream that a layer norm with this gain reads."""
        if self.kind == "ln_2":
            return f"h.{self.layer}.resid_mid"
        if self.kind == "ln_f":
            return "last"
        return "embed" if self.layer == 0 else f"h.{(self.layer or 0) - 1}.resid_post"


@dataclass
class Memory:
    """Roles by address: storage → (first element, one past the last, role)."""

    spans: dict[int, list[tuple[int, int, Role]]] = field(default_factory=dict)
    kept: list[torch.Tensor] = field(default_factory=list)

    def put(self, tensor: torch.Tensor, role: Role) -> None:
        start = tensor.storage_offset()
        span = (start, start + tensor.numel(), role)
        self.spans.setdefault(address(tensor), []).append(span)

    def get(self, tensor: torch.Tensor) -> Role | None:
        at = tensor.storage_offset()
        for start, end, role in self.spans.get(address(tensor), ()):
            if start <= at < end:
                return role
        return None


def address(tensor: torch.Tensor) -> int:
    """Equal for every view of one piece of memory."""
    return int(tensor.untyped_storage().data_ptr())


def sum_site(site: str) -> str | None:
    """``h.3.attn.out`` → ``h.3.resid_mid``."""
    for output, state in SUMS.items():
        if site.endswith(output):
            return site.removesuffix(output) + state
    return None
