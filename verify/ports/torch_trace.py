"""Seeing inside a torch module without being told how.

Every operation that a module runs passes through torch's dispatcher, where this mode watches it.
The parameters' memory says which tensor of the checkpoint an operation reads, and with that,
which site its input and its output are:

* what enters the product with ``c_attn`` is ``ln_1``, what leaves it is ``attn.qkv``; likewise for
  the other matrices; what enters the product with ``wte`` is ``ln_f``;
* what enters a layer norm is the residual stream, and so is the sum of a projection's output and
  something else;
* a softmax over T × T between the two products of an attention has scores as input and the
  pattern as output. A fused attention shows neither.

Nothing is said of names or classes, so functional code is seen like any other. Values are handed
over before the next operation can overwrite them. What an unusual module computes in an unusual
order is simply not shown, and what lies between two shown sites is judged as one operation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reference.config import Config
from verify.matching import Placement

if TYPE_CHECKING:
    from verify.ports.port import Dtype, Floats, Visit

#: Tensor of the checkpoint (without its layer) → (site that enters its product, site that leaves).
_PRODUCTS = {
    "attn/c_attn": ("ln_1", "attn.qkv"),
    "attn/c_proj": ("attn.mix", "attn.out"),
    "mlp/c_fc": ("ln_2", "mlp.pre"),
    "mlp/c_proj": ("mlp.act", "mlp.out"),
}
#: Site of a projection → the residual stream after it.
_SUMS = {"attn.out": "resid_mid", "mlp.out": "resid_post"}
_MATMULS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "mv", "addmv", "_addmm_activation"}
_MATMULS |= {"convolution"}  # over one position, channels before positions
_GATHERS = {"embedding", "index", "index_select", "gather"}
_SUM_OPS = {"add", "add_", "addcmul", "addcmul_", "sub"}
_COPIES = {"_to_copy", "clone", "contiguous", "_unsafe_view", "alias", "lift_fresh"}
_WIDTH = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_DTYPE: dict[torch.dtype, Dtype] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


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
        if self.kind in _PRODUCTS:
            return f"h.{self.layer}.{_PRODUCTS[self.kind][1]}"
        return None

    @property
    def input(self) -> str | None:
        """The site that a product with this matrix reads."""
        if self.kind == "wte":
            return "ln_f"
        return f"h.{self.layer}.{_PRODUCTS[self.kind][0]}" if self.kind in _PRODUCTS else None

    @property
    def normalised(self) -> str:
        """The state of the residual stream that a layer norm with this gain reads."""
        if self.kind == "ln_2":
            return f"h.{self.layer}.resid_mid"
        if self.kind == "ln_f":
            return "last"
        return "embed" if self.layer == 0 else f"h.{(self.layer or 0) - 1}.resid_post"


@dataclass
class _Pending:
    """A value that may still be completed: a product by its bias, an embedding by the other."""

    site: str
    tensor: torch.Tensor
    part: int | None = None
    bias: bool = False
    wants_bias: bool = True


@dataclass
class _Memory:
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


class SiteTrace(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """Watches one run and hands each site to ``visit`` (see ``verify.ports.port.Visit``)."""

    def __init__(
        self,
        parameters: Iterable[tuple[torch.Tensor, Placement]],
        config: Config,
        batch: int,
        length: int,
        visit: Visit,
    ) -> None:
        super().__init__()
        self._config = config
        self._batch, self._length = batch, length
        self._visit = visit
        self._memory = _Memory()
        for tensor, placement in parameters:
            self._memory.put(tensor, Role(placement.tensor, placement.part))
        self._pending: dict[int, _Pending] = {}
        self._done: set[str] = set()
        self._outputs: dict[int, tuple[str, torch.Tensor]] = {}
        self._held: dict[str, Any] = {}
        self._parts: dict[str, dict[int, Any]] = {}
        self._layer = -1
        self._narrowest = torch.float64
        self._time_first: set[int] = set()

    # A module that is cast to float64 while it runs tells where its new parameters lie.
    def stands_for(self, copy: torch.Tensor, original: torch.Tensor) -> None:
        if role := self._memory.get(original):
            self._memory.put(copy, role)

    def forget(self, copy: torch.Tensor) -> None:
        self._memory.spans.pop(address(copy), None)

    @property
    def narrowest(self) -> Dtype:
        """Narrowest format in use since the last site."""
        return _DTYPE[self._narrowest]

    def finish(self) -> None:
        """Hand over what was still waiting when the run ended."""
        for pending in list(self._pending.values()):
            self._emit(pending)
        self._pending.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func.is_view:
            result = func(*args, **kwargs)
            if isinstance(result, torch.Tensor) and result.ndim > 2:
                self._note_layout((), result)
            return result
        tensors = list(_tensors(args)) + list(_tensors(kwargs.values()))
        roles = [self._memory.get(t) for t in tensors]
        if name in _COPIES:
            return self._copy(func, args, kwargs, tensors, roles)

        continued = self._continues(name, tensors, roles)
        for tensor in tensors:
            waiting = self._pending.get(address(tensor))
            if waiting is not None and waiting is not continued:
                self._complete(waiting)
        self._before(name, tensors, roles)
        # A sum with a projection's output is the residual stream: see before it is overwritten.
        summed = self._summed(name, tensors) if continued is None else None

        result = func(*args, **kwargs)
        output = result[0] if isinstance(result, tuple) and result else result
        if isinstance(output, torch.Tensor):
            self._note_width(tensors, output)
            self._note_layout(tensors, output)
            if continued is not None:
                self._continue(continued, output, roles)
            elif summed is not None:
                self._pending[address(output)] = _Pending(summed, output, wants_bias=False)
            else:
                self._after(name, tensors, roles, output)
        return result

    def _copy(
        self, func: Any, args: Any, kwargs: Any, tensors: Sequence[torch.Tensor], roles: Any
    ) -> Any:
        """A copy of a parameter is that parameter; a copy of a waiting value waits instead."""
        result = func(*args, **kwargs)
        if not tensors or not isinstance(result, torch.Tensor):
            return result
        self._note_layout(tensors, result)
        source = tensors[0]
        if roles[0] is not None and source.numel() == result.numel():
            self._memory.put(result, roles[0])
            self._memory.kept.append(result)
        elif waiting := self._pending.get(address(source)):
            whole = waiting.tensor.numel() == result.numel() and result.dtype == source.dtype
            if whole and source.is_contiguous():
                self._pending.pop(address(source))
                waiting.tensor = result.reshape(waiting.tensor.shape)
                self._pending[address(result)] = waiting
            else:  # a part of it, or in another order or format: it is being used
                self._complete(waiting)
        self._note_width(tensors, result)
        return result

    def _continues(
        self, name: str, tensors: Sequence[torch.Tensor], roles: Sequence[Role | None]
    ) -> _Pending | None:
        """The waiting value that this operation completes: the addition of its own bias."""
        if name not in _SUM_OPS:
            return None
        waiting = [p for t in tensors if (p := self._pending.get(address(t)))]
        for pending in waiting:
            for role in roles:
                if role is None or role.leaf != "b":
                    continue
                if role.output == pending.site and role.part == pending.part:
                    return pending
                # The bias of a projection, added after the residual stream was.
                if role.output in self._held and _sum_site(role.output) == pending.site:
                    self._held.pop(role.output)
                    return pending
        # The rows of one table and whatever is added to them first: the other table's, or a slice.
        tables = [p for p in waiting if p.site == "embed" and not p.bias]
        for other in tables[1:]:
            self._pending.pop(address(other.tensor), None)
        return tables[0] if tables else None

    def _continue(self, pending: _Pending, output: torch.Tensor, roles: Sequence[Any]) -> None:
        self._pending.pop(address(pending.tensor), None)
        pending.tensor = output
        pending.bias = True
        self._pending[address(output)] = pending

    def _complete(self, pending: _Pending) -> None:
        self._pending.pop(address(pending.tensor), None)
        self._emit(pending)

    def _before(
        self, name: str, tensors: Sequence[torch.Tensor], roles: Sequence[Role | None]
    ) -> None:
        """Sites that are inputs of this operation."""
        if name == "native_layer_norm" and tensors:
            for role in roles[1:]:
                if role is not None:
                    self._hand_over(self._state(role), tensors[0])
                    break
        elif name in _MATMULS:
            role = next((r for r in roles if r and r.leaf in ("w", "wte")), None)
            if role is not None and role.input is not None:
                x = self._operand(tensors, roles)
                if x is not None:
                    self._hand_over(role.input, _channels_last(name, x))
        elif name == "_softmax" and tensors and self._is_pattern(tensors[0]):
            self._hand_over(f"h.{self._layer}.attn.scores", tensors[0])

    def _after(
        self,
        name: str,
        tensors: Sequence[torch.Tensor],
        roles: Sequence[Role | None],
        output: torch.Tensor,
    ) -> None:
        """Sites that are outputs of this operation."""
        if name in _GATHERS and roles and roles[0] is not None and roles[0].output == "embed":
            self._pending[address(output)] = _Pending("embed", output)
        elif name in _MATMULS:
            role = next((r for r in roles if r and r.leaf in ("w", "wte")), None)
            if role is None:
                return
            if role.kind == "wte":
                # A product with a one-hot matrix is a lookup; the other one is the head.
                if output.shape[-1] == self._config.n_embd:
                    self._pending[address(output)] = _Pending("embed", output)
                return
            site = role.output
            if site is None:
                return
            bias = any(r and r.leaf == "b" and r.output == site for r in roles)
            if site.endswith("attn.qkv"):
                self._layer = role.layer or 0
            made = _Pending(site, _channels_last(name, output), role.part, bias)
            if bias:  # nothing is left to wait for
                self._emit(made)
            else:
                self._pending[address(output)] = made
        elif name == "_softmax" and self._is_pattern(output):
            self._hand_over(f"h.{self._layer}.attn.pattern", output)

    def _summed(self, name: str, tensors: Sequence[torch.Tensor]) -> str | None:
        """Site of the residual stream that this addition makes."""
        if name not in ("add", "add_") or len(tensors) != 2:
            return None
        for tensor in tensors:
            known = self._outputs.get(address(tensor))
            if known is not None and (site := _sum_site(known[0])):
                return site
        return None

    def _emit(self, pending: _Pending) -> None:
        if pending.site == "embed" and not pending.bias:
            return  # one table alone, put to some other use: the sum shows where it is read
        if pending.wants_bias and not pending.bias and pending.site.endswith(tuple(_SUMS)):
            # Either the bias is missing, or it will be added to the residual sum. Wait and see.
            value = self._shaped(pending.tensor, pending.site)
            if value is not None:
                self._held[pending.site] = value.clone()
        elif pending.part is not None:
            parts = self._parts.setdefault(pending.site, {})
            value = self._shaped(pending.tensor, pending.site, parts=3)
            if value is not None:
                parts[pending.part] = value.clone()
            if len(parts) == 3:
                self._parts.pop(pending.site)
                whole = torch.cat([parts[i] for i in range(3)], dim=-1)
                self._hand_over(pending.site, whole)
        else:
            for site in [s for s in self._held if _sum_site(s) == pending.site]:
                self._hand_over(site, self._held.pop(site))
            self._hand_over(pending.site, pending.tensor)
        if pending.site.endswith(tuple(_SUMS)):
            self._outputs = {address(pending.tensor): (pending.site, pending.tensor)}

    def _hand_over(self, site: str, tensor: torch.Tensor) -> None:
        if site in self._done:
            return
        value = self._shaped(tensor, site)
        if value is None:
            return
        self._done.add(site)
        narrowest, self._narrowest = self._narrowest, torch.float64
        if value.dtype == torch.float64:
            value = value.clone()  # nothing else copies it, and the module may write over it
        self._visit(site, to_numpy(value), _DTYPE[narrowest])

    def _shaped(self, tensor: torch.Tensor, site: str, parts: int = 1) -> torch.Tensor | None:
        """[B, T, F] or [B, H, T, S] out of what the module had: flat rows, or time first.

        None where the elements are not those of the whole batch: a module that takes its
        sequences one by one does not show this site.
        """
        b, t = self._batch, self._length
        if site.endswith(("attn.scores", "attn.pattern")):
            return tensor.reshape(b, self._config.n_head, t, t)
        width = self._width(site) // parts
        if tensor.numel() != b * t * width:
            return None
        lead = tensor.shape[:2]
        if tensor.ndim > 2 and lead in ((b, t), (t, b)):
            time_first = lead != (b, t)
        elif tensor.shape[-1] == width:
            time_first = address(tensor) in self._time_first
        else:
            return None
        return (
            tensor.reshape(t, b, width).transpose(0, 1)
            if time_first
            else tensor.reshape(b, t, width)
        )

    def _note_layout(self, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        """Flat rows lie in the order of what they were made from: [B, T, …] or [T, B, …]."""
        b, t = self._batch, self._length
        at, lead = address(output), output.shape[:2]
        if b == 1 or b == t or output.numel() % (b * t) or not output.is_contiguous():
            return
        if output.ndim > 2 and lead in ((b, t), (t, b)):
            time_first = lead == (t, b)
        elif inputs:
            time_first = any(address(x) in self._time_first for x in inputs)
        else:
            return
        (self._time_first.add if time_first else self._time_first.discard)(at)

    def _is_pattern(self, x: torch.Tensor) -> bool:
        size = self._batch * self._config.n_head * self._length**2
        return self._layer >= 0 and x.numel() == size and x.shape[-1] == self._length

    def _operand(
        self, tensors: Sequence[torch.Tensor], roles: Sequence[Role | None]
    ) -> torch.Tensor | None:
        """The factor of a product that is no parameter."""
        return next(
            (t for t, r in zip(tensors, roles, strict=True) if r is None and t.ndim >= 2), None
        )

    def _width(self, site: str) -> int:
        factors = {"attn.qkv": 3, "mlp.pre": 4, "mlp.act": 4}
        return self._config.n_embd * factors.get(site.split(".", 2)[-1], 1)

    def _state(self, role: Role) -> str:
        last = self._config.n_layer - 1
        return f"h.{last}.resid_post" if role.normalised == "last" else role.normalised

    def _note_width(self, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        if output.dtype not in _WIDTH or output.numel() < self._batch * self._length:
            return
        if any(t.dtype in _WIDTH for t in inputs):
            self._narrowest = max(self._narrowest, output.dtype, key=_WIDTH.__getitem__)


def _channels_last(name: str, x: torch.Tensor) -> torch.Tensor:
    """[B, F, T] of a convolution as [B, T, F]; the rest as it is."""
    return x.transpose(1, 2) if name == "convolution" and x.ndim == 3 else x


def _sum_site(site: str) -> str | None:
    """``h.3.attn.out`` → ``h.3.resid_mid``."""
    for output, state in _SUMS.items():
        if site.endswith(output):
            return site.removesuffix(output) + state
    return None


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def to_numpy(tensor: torch.Tensor) -> Floats:
    """Values as float32, or float64 where that is what they are; widening is exact."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: Floats = tensor.cpu().contiguous().numpy()
    return array
