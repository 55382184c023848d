"""Seeing inside a torch module without being told how.

Every operation that a module runs passes through torch's dispatcher, where this mode watches it.
The parameters' memory says which tensor of the checkpoint an operation reads, and with that,
which site its input and its output are:

* what enters the product with a matrix and what leaves it is as ``gpt_verify.sites`` says: ``ln_1``
and
  ``attn.qkv`` for ``c_attn`` of a GPT-2; what enters the product with ``wte`` is ``ln_f``;
* what enters a layer norm is the residual stream, and so is the sum of a projection's output and
  something else;
* a softmax over T × T between the two products of an attention has scores as input and the
  pattern as output. A fused attention shows neither.

Nothing is said of names or classes, so functional code is seen like any other. Values are handed
over before the next operation can overwrite them. What an unusual module computes in an unusual
order is simply not shown, and what lies between two shown sites is judged as one operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_verify.ports.torch.flow import Flow, follows, multiple
from gpt_verify.ports.torch.layout import Layout
from gpt_verify.ports.torch.roles import Memory, Role, Side, address, strided, sums
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.port import Dtype, Floats, Visit
    from gpt_verify.ports.torch.channels import Channels

_MATMULS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "mv", "addmv", "_addmm_activation"}
_MATMULS |= {"convolution"}  # over one position, channels before positions
_GATHERS = {"embedding", "index", "index_select", "gather"}
_SUM_OPS = {"add", "add_", "addcmul", "addcmul_", "sub"}
#: Sites that are queries, keys or values.
_READ_BY_ATTENTION = {"attn.qkv", "attn.q", "attn.k", "attn.v"}
_COPIES = {"_to_copy", "clone", "contiguous", "_unsafe_view", "alias", "lift_fresh"}
_WIDTH = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_DTYPE: dict[torch.dtype, Dtype] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


@dataclass
class _Pending:
    """A value that may still be completed: a product by its bias, an embedding by the other.

    ``columns``: the channels that it has, where these are not all in the checkpoint's order.
    ``missing``: of a product with some rows of a matrix, the rows that it is still to be summed
    over. ``sides``: of a product with several tensors at once, what it makes; ``site`` is then one
    of these. ``to_scale``: what numbers are still to multiply it with, in whatever format;
    ``scaled``: one has.
    """

    site: str
    tensor: torch.Tensor
    columns: tuple[int, ...] | None = None
    bias: bool = False
    wants_bias: bool = True
    missing: int = 0
    sides: tuple[Side, ...] = ()
    to_scale: float | None = None
    scaled: bool = False

    @property
    def complete(self) -> bool:
        return (self.bias or not self.wants_bias) and not self.missing

    def scaled_by(self, factor: float) -> bool:
        """Whether it waited for this number, or one that leads there; within two of the format's
        units it is still the number that it waited for."""
        if self.to_scale is None or factor <= 0:
            return False
        left = self.to_scale / factor
        if abs(math.log(left)) >= abs(math.log(self.to_scale)):
            return False
        done = abs(left - 1) <= 2 * torch.finfo(self.tensor.dtype).eps
        self.to_scale, self.scaled = (None if done else left), True
        return True

    @property
    def unscaled(self) -> bool:
        """Rows of a table that are to be multiplied, and were put to some other use."""
        return self.to_scale is not None and not self.scaled


class SiteTrace(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """Watches one run and hands each site to ``visit`` (see ``gpt_verify.port.Visit``).

    Args:
        parameters: tensors of the module, each with what it holds.
        config: the checkpoint's sizes.
        batch: B, rows of the input.
        length: T, tokens of a row.
        visit: takes each site, [B, T, …], when it has been made.
        channels: how ``c_attn`` lies, where that is not the checkpoint's order.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[torch.Tensor, Role]],
        config: Config,
        batch: int,
        length: int,
        visit: Visit,
        channels: Channels | None = None,
    ) -> None:
        super().__init__()
        self._channels = channels
        self._config, self._table = config, tensor_table(config)
        self._batch, self._length = batch, length
        self._visit = visit
        self._sites, self._sums = sites(config), sums(config)
        self._layout = Layout(config, batch, length)
        self._memory = Memory()
        self._heads: dict[str, tuple[int, ...]] = {}
        for tensor, role in parameters:
            self._memory.put(tensor, role)
            if role.rows is not None and role.input is not None:
                self._note_heads(role)
        self._pending: dict[int, _Pending] = {}
        #: Of a copy, whether its last axis lay together before: if so, the channels are in order.
        self._plain: dict[int, bool] = {}
        self._done: set[str] = set()
        self._outputs: dict[int, tuple[str, torch.Tensor]] = {}
        self._held: dict[str, Any] = {}
        self._parts: dict[str, dict[tuple[int, ...], Any]] = {}
        self._layer = -1
        self._narrowest = torch.float64
        self._flow = (
            Flow(config, batch, length, self._layout, self._follow) if follows(config) else None
        )

    # A module that is cast to float64 while it runs tells where its new parameters lie.
    def stands_for(self, copy: torch.Tensor, original: torch.Tensor) -> None:
        self._memory.carry(original, copy)
        if self._flow is not None:
            self._flow.is_new(copy)

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
                self._layout.note((), result)
            return result
        tensors = list(_tensors(args)) + list(_tensors(kwargs.values()))
        roles = [self._memory.get(t) for t in tensors]
        if name in _COPIES:
            return self._copy(func, args, kwargs, tensors, roles)

        continued = self._continues(name, args, tensors, roles)
        for tensor in tensors:
            waiting = self._pending.get(address(tensor))
            if waiting is not None and waiting is not continued:
                self._complete(waiting)
        if self._flow is not None:
            self._flow.before(name, args, tensors)
        self._before(name, tensors, roles)
        # A sum with a projection's output is the residual stream: see before it is overwritten.
        summed = self._summed(name, tensors) if continued is None else None

        result = func(*args, **kwargs)
        output = result[0] if isinstance(result, tuple) and result else result
        if isinstance(output, torch.Tensor):
            if address(output) not in map(address, tensors):
                self._plain.pop(address(output), None)
            self._note_width(tensors, output)
            self._layout.note(tensors, output)
            if self._flow is not None:
                made = [output, *_tensors(result[1:])] if isinstance(result, tuple) else [output]
                self._flow.after(name, args, tensors, roles, made)
            if continued is not None:
                self._continue(continued, output, roles)
            elif summed is not None:
                self._pending[address(output)] = _Pending(summed, output, wants_bias=False)
            else:
                self._after(name, tensors, roles, output)
        return result

    def _follow(self, site: str, tensor: torch.Tensor, order: tuple[int, ...] | None) -> bool:
        """A site that is told by what it was made from; the sum that it enters is told by it."""
        self._hand_over(site, tensor, order)
        if site in self._sums:
            self._outputs = {address(tensor): (site, tensor)}
        return site in self._done

    def _copy(
        self, func: Any, args: Any, kwargs: Any, tensors: Sequence[torch.Tensor], roles: Any
    ) -> Any:
        """A copy of a parameter is that parameter; a copy of a waiting value waits instead."""
        result = func(*args, **kwargs)
        if not tensors or not isinstance(result, torch.Tensor):
            return result
        self._layout.note(tensors, result)
        source = tensors[0]
        if address(result) != address(source):
            axes = strided(source)
            self._plain[address(result)] = not axes or axes[-1][1] == 1
        if roles[0] is not None and source.numel() == result.numel():
            self._memory.carry(source, result, as_it_lies=False)
            self._memory.kept.append(result)
        elif waiting := self._pending.get(address(source)):
            whole = waiting.tensor.numel() == result.numel() and result.dtype == source.dtype
            whole = whole and source.is_contiguous()
            held = any(self._sums[site] == waiting.site for site in self._held)
            if waiting.to_scale is not None and waiting.tensor.numel() == result.numel():
                whole = held = True
            if whole and (held or not waiting.complete):
                self._pending.pop(address(source))
                waiting.tensor = result.reshape(waiting.tensor.shape)
                self._pending[address(result)] = waiting
            else:  # nothing is left to wait for, or it is being used
                self._complete(waiting)
                if whole and (known := self._outputs.get(address(source))):
                    self._outputs[address(result)] = (known[0], result)
        self._note_width(tensors, result)
        if self._flow is not None:
            self._flow.copied(source, result, roles[0])
        return result

    def _continues(
        self,
        name: str,
        args: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        roles: Sequence[Role | None],
    ) -> _Pending | None:
        """The waiting value that this operation completes: the addition of its own bias, or the
        factor of an embedding."""
        if self._config.embed_scale is not None and (scaled := multiple(name, args)) is not None:
            pending = self._pending.get(address(scaled[0]))
            if pending is not None and pending.scaled_by(scaled[1]):
                return pending
        if self._config.embed_scale is not None and name in ("mul", "mul_", "div"):
            for pending in [p for t in tensors if (p := self._pending.get(address(t)))]:
                if pending.unscaled and self._is_one_number(pending, tensors, roles):
                    pending.to_scale, pending.scaled = None, True
                    return pending
        if name not in _SUM_OPS:
            return None
        waiting = [p for t in tensors if (p := self._pending.get(address(t)))]
        if len(waiting) == 2 and waiting[0].missing and waiting[1].missing:
            one, other = waiting
            if one is not other and (one.site, one.columns) == (other.site, other.columns):
                self._pending.pop(address(other.tensor))
                one.missing = max(0, one.missing + other.missing - self._rows(one.site))
                return one
        for pending in waiting:
            for role in roles:
                if role is None or role.leaf != "b":
                    continue
                its, own = (role.columns, role.sides), (pending.columns, pending.sides)
                if role.columns is None and self._is_whole(pending):
                    own = None, pending.sides  # all channels, in whatever order
                if role.output == pending.site and its == own:
                    pending.bias = True
                    return pending
                # The bias of a projection, added after the residual stream was.
                if role.output in self._held and self._sums[role.output] == pending.site:
                    self._held.pop(role.output)
                    pending.bias = True
                    return pending
            if pending.wants_bias and pending.site != "embed" and _is_vector(tensors, pending):
                # Another vector in its place: what comes of that is what the port has there. Its
                # own may follow.
                return pending
        # The rows of one table and whatever is added to them first: the other table's, or a slice;
        # and any further rows, of whichever table.
        tables = [p for p in waiting if p.site == "embed"]
        if all(p.bias for p in tables):
            return None
        for other in tables[1:]:
            self._pending.pop(address(other.tensor), None)
        tables[0].bias = True
        return tables[0]

    def _is_whole(self, pending: _Pending) -> bool:
        """Whether it has all channels of its site."""
        return len(pending.columns or ()) == self._sites[pending.site].width

    def _continue(self, pending: _Pending, output: torch.Tensor, roles: Sequence[Any]) -> None:
        self._pending.pop(address(pending.tensor), None)
        pending.tensor = output
        self._pending[address(output)] = pending
        if pending.complete and pending.columns is not None:
            # Values are not read before scores and pattern are there, which are judged from them.
            self._complete(pending)

    def _complete(self, pending: _Pending) -> None:
        self._pending.pop(address(pending.tensor), None)
        self._emit(pending)

    def _before(
        self, name: str, tensors: Sequence[torch.Tensor], roles: Sequence[Role | None]
    ) -> None:
        """Sites that are inputs of this operation."""
        if name == "native_layer_norm" and tensors:
            for role in roles[1:]:
                if role is not None and role.normalised is not None:
                    if self._begun(role.normalised):
                        self._complete_unread(role.normalised, tensors[0])
                        self._hand_over(role.normalised, tensors[0])
                    break
        elif name in _MATMULS:
            role = next((r for r in roles if r and r.is_matrix), None)
            if role is not None:  # a product that is whole is not waited for, if nothing reads it
                for waiting in [p for p in self._pending.values() if p.wants_bias and p.complete]:
                    if waiting.site != "embed":
                        self._complete(waiting)
            if role is not None and role.input is not None:
                x = self._operand(tensors, roles)
                if x is not None and not (role.is_table and self._chooses_rows(x)):
                    plain = self._plain.get(address(x)) if role.copied else False
                    if plain is not None:
                        rows = None if plain else role.rows
                        self._hand_over(role.input, _channels_last(name, x), rows)
        elif (
            name == "_softmax"
            and tensors
            and self._is_pattern(tensors[0])
            and (scores := self._softmax_reads()) is not None
        ):
            self._hand_over(scores, tensors[0])

    def _after(
        self,
        name: str,
        tensors: Sequence[torch.Tensor],
        roles: Sequence[Role | None],
        output: torch.Tensor,
    ) -> None:
        """Sites that are outputs of this operation."""
        if name in _GATHERS and roles and roles[0] is not None and roles[0].output == "embed":
            self._looked_up(output)
        elif name in _MATMULS:
            role = next((r for r in roles if r and r.is_matrix), None)
            if role is None:
                return
            if role.is_table:
                # A product with a one-hot matrix is a lookup; the other one is the head.
                x, config = self._operand(tensors, roles), self._config
                square = config.n_vocab == config.n_embd and x is not None
                if output.shape[-1] == config.n_embd and (not square or self._chooses_rows(x)):
                    self._looked_up(output)
                return
            site = role.output
            if site is None:
                return
            bias = any(
                r and r.leaf == "b" and r.output == site and r.sides == role.sides for r in roles
            )
            made_here = [site, *(side[0] for side in role.sides)]
            if any(self._sites[name].kind in _READ_BY_ATTENTION for name in made_here):
                self._layer = role.layer or 0
            wants_bias = len(self._sites[site].weights) > 1
            made = _Pending(site, _channels_last(name, output), role.columns, bias, wants_bias)
            made.missing, made.sides = self._missing(tensors, roles, site), role.sides
            if made.complete:  # nothing is left to wait for
                self._emit(made)
            else:
                self._pending[address(output)] = made
        elif name == "_softmax" and self._is_pattern(output):
            self._hand_over(f"h.{self._layer}.attn.pattern", output)
        elif name == "_softmax" and self._has_a_sink(output):
            self._hand_over(f"h.{self._layer}.attn.pattern", output[..., :-1])

    def _summed(self, name: str, tensors: Sequence[torch.Tensor]) -> str | None:
        """Site of the residual stream that this addition makes."""
        if name not in ("add", "add_") or len(tensors) != 2:
            return None
        for tensor, other in (tensors, tensors[::-1]):
            known = self._outputs.get(address(tensor))
            if known is not None:
                # A vector that is added to all positions is no stream.
                whole = other.numel() >= tensor.numel() and other.ndim >= tensor.ndim
                return self._sums.get(known[0]) if whole else None
        return None

    def _is_one_number(
        self, pending: _Pending, tensors: Sequence[torch.Tensor], roles: Sequence[Role | None]
    ) -> bool:
        """Whether what multiplies the rows of a table is a number in a tensor, or one for each
        channel."""
        others = [
            (t, role)
            for t, role in zip(tensors, roles, strict=True)
            if address(t) != address(pending.tensor)
        ]
        sizes = (1, self._config.n_embd)
        return len(others) == 1 and others[0][0].numel() in sizes and others[0][1] is None

    def _chooses_rows(self, x: torch.Tensor) -> bool:
        """Whether what a table is multiplied with is one-hot. Only of a table with as many rows as
        columns the shapes do not say so."""
        if self._config.n_vocab != self._config.n_embd:
            return False
        return bool(((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all())

    def _looked_up(self, output: torch.Tensor) -> None:
        """A row of each table, which are then added; of one alone nothing is awaited. Where they
        are scaled, the site is what a number has multiplied."""
        keys = self._config.keys
        made = _Pending("embed", output, bias=not keys.table)
        made.to_scale = self._config.embed_scale
        self._pending[address(output)] = made

    def _softmax_reads(self) -> str | None:
        """The site that a softmax over T × T has read, or None where it read something else as
        well: a window's mask, or distances in another form (slope · s for slope · (s - t))."""
        window = self._config.window(self._layer)
        if self._config.keys.alibi or (window is not None and window < self._length):
            return None
        return self._sites[f"h.{self._layer}.attn.pattern"].inputs[0]

    def _begun(self, site: str) -> bool:
        """Whether any of the branch has been seen that a sum of the residual stream adds: what is
        normed before that is not this sum."""
        for output, state in self._sums.items():
            if site == state:
                branch = output.rpartition(".")[0]
                return any(seen.startswith(branch) for seen in (*self._done, *self._held))
        return True

    def _complete_unread(self, site: str, read: torch.Tensor) -> None:
        """A sum that nothing has read yet is the stream, and not what a norm reads in its place."""
        for waiting in list(self._pending.values()):
            if waiting.site == site and address(waiting.tensor) != address(read):
                self._complete(waiting)

    def _rows(self, site: str) -> int:
        """The rows of the matrix that makes a site: the features that are summed over."""
        return self._table[self._sites[site].weights[0]].shape[0]

    def _missing(
        self, tensors: Sequence[torch.Tensor], roles: Sequence[Role | None], site: str
    ) -> int:
        """Rows of the matrix that a product leaves out."""
        x = self._operand(tensors, roles)
        features = self._rows(site) if x is None else x.numel() // (self._batch * self._length)
        return max(0, self._rows(site) - features)

    def _emit(self, pending: _Pending) -> None:
        if pending.missing:
            return  # a part of a sum, put to some other use
        if pending.sides:
            self._emit_each(pending)
            return
        if pending.site == "embed" and (not pending.bias or pending.unscaled):
            return  # one table alone, put to some other use: the sum shows where it is read
        if pending.wants_bias and not pending.bias and pending.site in self._sums:
            # Either the bias is missing, or it will be added to the residual sum. Wait and see.
            value = self._layout.shaped(pending.tensor, pending.site)
            if value is not None:
                self._held[pending.site] = value.clone()
        elif pending.columns is not None:
            self._gather(pending, pending.columns)
        else:
            for site in [s for s in self._held if self._sums[s] == pending.site]:
                self._hand_over(site, self._held.pop(site))
            self._hand_over(pending.site, pending.tensor)
        if pending.site in self._sums:
            self._outputs = {address(pending.tensor): (pending.site, pending.tensor)}

    def _emit_each(self, pending: _Pending) -> None:
        """What a product with several tensors has made, site by site; nothing where the bias of one
        of them is still to be added by itself."""
        if pending.wants_bias and not pending.bias:
            return
        of = sum(len(places) for _, places, _ in pending.sides)
        whole = pending.tensor
        if self._flow is not None:
            self._flow.is_several(whole, pending.sides)
        if whole.shape[-1] != of and whole.ndim > 2:  # heads, or the tensors, have an axis
            whole = whole.flatten(2)
        if whole.shape[-1] != of:
            return
        for site, places, columns in pending.sides:
            at = torch.tensor(places, device=whole.device)
            part = whole.index_select(-1, at)
            self._layout.note([pending.tensor], part)
            self._emit(_Pending(site, part, columns, pending.bias, pending.wants_bias))

    def _gather(self, pending: _Pending, columns: tuple[int, ...]) -> None:
        """Some channels of a site: it is handed over when all have been seen."""
        value = self._layout.shaped(pending.tensor, pending.site, len(columns))
        if value is None:
            return
        if len(columns) == self._sites[pending.site].width:
            self._hand_over(pending.site, pending.tensor, columns)
            return
        parts = self._parts.setdefault(pending.site, {})
        parts[columns] = value.clone()
        order = [channel for seen in parts for channel in seen]
        if len(order) == self._sites[pending.site].width:
            self._parts.pop(pending.site)
            self._hand_over(pending.site, torch.cat(list(parts.values()), dim=-1), tuple(order))

    def _note_heads(self, role: Role) -> None:
        """Note the order in which the heads lie, where the rows of a projection tell."""
        size = self._config.head_size
        assert role.rows is not None and role.input is not None
        blocks = [role.rows[at : at + size] for at in range(0, len(role.rows), size)]
        heads = tuple(block[0] // size for block in blocks)
        whole = all({c // size for c in b} == {h} for b, h in zip(blocks, heads, strict=True))
        if role.input.endswith("attn.mix") and whole and len(heads) == self._config.n_head:
            self._heads[role.input.removesuffix("mix")] = heads

    def _hand_over(
        self, site: str, tensor: torch.Tensor, order: tuple[int, ...] | None = None
    ) -> None:
        """``order``: the channels that the tensor has, where it has all of them in another."""
        if site in self._done:
            return
        value = self._layout.shaped(tensor, site)
        if value is None:
            return
        if order is not None:
            if len(order) != value.shape[-1]:
                return
            value = _put_in_order(value, order, -1)
        elif site.endswith(("attn.scores", "attn.pattern")):
            heads = self._heads.get(site.rpartition(".")[0] + ".")
            value = value if heads is None else _put_in_order(value, heads, 1)
        elif self._channels is not None and site.endswith("attn.qkv"):
            value = self._channels.to_checkpoint_layout(value)
        self._done.add(site)
        if self._flow is not None:
            self._flow.is_site(site, tensor)
            self._flow.begins(site, value, order)
        narrowest, self._narrowest = self._narrowest, torch.float64
        if value.dtype == torch.float64:
            value = value.clone()  # nothing else copies it, and the module may write over it
        self._visit(site, to_numpy(value), _DTYPE[narrowest])

    def _is_pattern(self, x: torch.Tensor) -> bool:
        size = self._batch * self._config.n_head * self._length**2
        return self._layer >= 0 and x.numel() == size and x.shape[-1] == self._length

    def _has_a_sink(self, x: torch.Tensor) -> bool:
        """Whether it is a pattern with one more source, the last: what the first target has, which
        sees itself alone, tells where that is."""
        size = self._batch * self._config.n_head * self._length * (self._length + 1)
        if not self._config.keys.sinks or self._layer < 0 or x.numel() != size:
            return False
        if x.shape[-2:] != (self._length, self._length + 1) or self._length < 2:
            return False
        others, last = x[..., 0, 1:-1], x[..., 0, -1]
        return bool((others == 0).all() and (last != 0).all())

    def _operand(
        self, tensors: Sequence[torch.Tensor], roles: Sequence[Role | None]
    ) -> torch.Tensor | None:
        """The factor of a product that is no parameter."""
        return next(
            (t for t, r in zip(tensors, roles, strict=True) if r is None and t.ndim >= 2), None
        )

    def _note_width(self, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        # A constant is no activation, not even where one token has one number.
        if output.dtype not in _WIDTH or output.numel() < max(2, self._batch * self._length):
            return
        if any(t.dtype in _WIDTH for t in inputs):
            self._narrowest = max(self._narrowest, output.dtype, key=_WIDTH.__getitem__)


def _put_in_order(value: torch.Tensor, order: tuple[int, ...], axis: int) -> torch.Tensor:
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return value.index_select(axis, back.to(value.device))


def _channels_last(name: str, x: torch.Tensor) -> torch.Tensor:
    """[B, F, T] of a convolution as [B, T, F]; the rest as it is."""
    return x.transpose(1, 2) if name == "convolution" and x.ndim == 3 else x


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_vector(tensors: Sequence[torch.Tensor], pending: _Pending) -> bool:
    """One number for each channel of a product, and nothing of its positions."""
    width = pending.tensor.shape[-1]
    others = [t for t in tensors if address(t) != address(pending.tensor)]
    return pending.tensor.ndim > 1 and [t.shape for t in others] == [(width,)]


def to_numpy(tensor: torch.Tensor) -> Floats:
    """Values as float32, or float64 where that is what they are; widening is exact."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: Floats = tensor.cpu().contiguous().numpy()
    return array
