"""What a value of a running module has been made from, and the sites that are told by that alone.

No parameter is read where queries are turned, and a product with a matrix neither makes nor reads
what a branch's own norm makes. Such a site is told by the sites and the gains that a value comes
from, and by what reads it:

* a norm's output is the first value made of its input, of a reduction of that and of its gain;
* turned queries and keys are what enters the product of the two. At position 0 nothing is turned,
  so that they equal there, bit for bit, what they were made from: this also tells the order of
  their channels, and which factor was multiplied in afterwards. What does not is not shown;
* what a mixture of experts adds to the stream is made of what the router reads, and of nothing
  else of its block.

Nothing is said of whether a value is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpt_verify.ports.torch.chosen import REDUCED, Chosen, HandOver, Names
from gpt_verify.ports.torch.layout import Layout
from gpt_verify.ports.torch.roles import Role, Side, address
from gpt_verify.ports.torch.turned import Begun, in_its_order
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

_NOTHING: Names = frozenset()
_REDUCTIONS = {"mean", "sum", "linalg_vector_norm", "norm", "var", "std", "var_mean"}
_NORM_KERNELS = {"native_layer_norm", "_fused_rms_norm", "rms_norm"}
#: These move numbers and change none.
_MOVES = {"index_select", "repeat", "gather", "index", "expand_copy"}
_UNDECIDED = "undecided"
_PRODUCTS = {"mm", "bmm", "matmul"}
_FUSED_ATTENTION = "_scaled_dot_product"


@dataclass(frozen=True)
class _Norm:
    """A norm that no product reads: its site, what it is made of, and how large it is."""

    site: str
    parts: Names
    input: str
    numel: int
    heads: int


@dataclass(frozen=True)
class _Waiting:
    """The output of a norm that may still be cast, or multiplied once more with its own parts."""

    norm: _Norm
    tensor: torch.Tensor


def follows(config: Config) -> bool:
    """Whether a model has any site that is told so."""
    keys = config.keys
    turned = any(rope is not None for rope in keys.ropes)
    return config.own is not None and bool(
        turned or keys.norm_branch or keys.qk_norm or keys.experts
    )


class Flow:
    """Follows the values of one run.

    Args:
        config: the checkpoint's sizes.
        batch: B, rows of the input.
        length: T, tokens of a row.
        layout: how rows lie.
        hand_over: takes a site with what the module has there, and the order of its channels.
    """

    def __init__(
        self, config: Config, batch: int, length: int, layout: Layout, hand_over: HandOver
    ) -> None:
        self._config, self._batch, self._length = config, batch, length
        self._hand_over = hand_over
        self._sites = sites(config)
        rows = batch * length
        self._norms = {
            site.weights[0]: _Norm(
                site.name,
                frozenset({site.inputs[0], REDUCED + site.inputs[0], site.weights[0]}),
                site.inputs[0],
                rows * site.width,
                site.heads,
            )
            for site in self._sites.values()
            if site.weights and site.operation in ("rms_norm", "layer_norm")
            if site.kind.endswith(("_norm", "_after"))
        }
        self._normed_by_head = {norm.input for norm in self._norms.values() if norm.heads}
        #: What is turned → what it is then.
        self._turned = {s.inputs[0]: s for s in self._sites.values() if s.operation == "rope"}
        self._names: dict[int, Names] = {}
        self._mixed: dict[int, tuple[str, ...]] = {}
        self._made: dict[int, torch.Tensor] = {}
        self._moved: dict[int, tuple[torch.Tensor, float]] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._begun: dict[str, Begun] = {}
        self._multiples: dict[int, tuple[str, float]] = {}
        self._experts = (
            Chosen(config, batch * length, layout, self.names, hand_over)
            if config.keys.experts is not None
            else None
        )
        #: Layer of the product of queries and keys that is being made, and its operands' factors.
        self._product: tuple[int | None, float] | None = None

    # What is known of memory.

    def is_site(self, site: str, tensor: torch.Tensor) -> None:
        """This memory is a site from now on."""
        at = address(tensor)
        self._mixed.pop(at, None)
        self._names[at] = frozenset({site})
        if site in self._turned:
            self._made[at] = tensor
            self._moved.pop(at, None)

    def is_new(self, tensor: torch.Tensor) -> None:
        """This memory is no value of the run: whatever it was before is gone."""
        at = address(tensor)
        for known in (self._names, self._mixed, self._made, self._moved, self._multiples):
            known.pop(at, None)

    def is_several(self, tensor: torch.Tensor, sides: Sequence[Side]) -> None:
        """This memory is several sites, side by side in the last axis."""
        names = {place: site for site, places, _ in sides for place in places}
        if tensor.is_contiguous() and sorted(names) == list(range(len(names))):
            self._mixed[address(tensor)] = tuple(names[place] for place in range(len(names)))

    def begins(self, site: str, value: torch.Tensor, order: tuple[int, ...] | None) -> None:
        """A site was shown, [B, T, …] in the checkpoint's order; ``order`` is the module's own."""
        if site in self._turned:
            self._begun[site] = Begun(value[:, 0].clone(), order)
        elif site in self._normed_by_head:
            self._begun[site] = Begun(value[:, :0], order)

    def names(self, tensor: torch.Tensor) -> Names:
        """The sites and gains that a value was made from."""
        at = address(tensor)
        if (mixed := self._mixed.get(at)) is None:
            return self._names.get(at, _NOTHING)
        return frozenset(mixed[column] for column in _columns(tensor, len(mixed)))

    # What an operation does.

    def before(self, name: str, arguments: Sequence[Any], tensors: Sequence[torch.Tensor]) -> None:
        """An operation is about to read these."""
        for tensor in tensors:
            waiting = self._waiting.get(address(tensor))
            if waiting is not None:
                del self._waiting[address(tensor)]
                if multiple(name, arguments) is not None or self._times_constants(
                    name, waiting, tensors
                ):
                    # The norm's own, or a scale of what reads it: nothing tells.
                    self._is_undecided(waiting.tensor)
                elif not self._goes_on(waiting, tensors) and not self._show(waiting):
                    self._is_undecided(waiting.tensor)
        if name in _PRODUCTS or name.startswith(_FUSED_ATTENTION):
            self._look_at_attention([t for t in tensors if self.names(t)][:2])
        if self._experts is not None:
            self._experts.before(name, tensors)

    def after(
        self,
        name: str,
        arguments: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        roles: Sequence[Role | None],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """An operation has made these."""
        read = [self.names(t) | self._gain(r) for t, r in zip(tensors, roles, strict=True)]
        found = _NOTHING.union(*read)
        if name in _REDUCTIONS or name in _NORM_KERNELS:
            found |= {REDUCED + part for part in found if part in self._sites}
        nameless = any(not n and t.ndim > 1 for n, t in zip(read, tensors, strict=True))
        if name in ("mul", "mul_") and nameless and found & self._normed_by_head:
            found |= {_UNDECIDED}  # turned before it is normed: no norm of what it was
        scaled = multiple(name, arguments)
        for output in outputs:
            at = address(output)
            if all(address(t) != at for t in tensors):
                self._mixed.pop(at, None)
            self._made.pop(at, None)
            self._moved.pop(at, None)
            self._multiples.pop(at, None)
            self._waiting.pop(at, None)
            if not found:
                self._names.pop(at, None)
                continue
            if at not in self._mixed:
                self._names[at] = found
            self._note(name, scaled, tensors, found, output)
        self._note_product(name, outputs[0])
        if self._experts is not None:
            self._experts.after(name, outputs, found)

    def copied(self, source: torch.Tensor, result: torch.Tensor, role: Role | None) -> None:
        """One value in another format, or elsewhere."""
        if address(source) == address(result):
            return
        if self._experts is not None:
            self._experts.before("", [source])
        waiting = self._waiting.pop(address(source), None)
        self.after("", (), [source], [role], [result])
        if waiting is not None and result.numel() == source.numel():
            self._waiting[address(result)] = _Waiting(waiting.norm, result)
        elif waiting is not None:
            self._waiting[address(source)] = waiting
        if self.names(source) and len(self.names(source)) == 1:
            self._moved[address(result)] = (source, 1.0)
            if (multiple := self._multiples.get(address(source))) is not None:
                self._multiples[address(result)] = multiple

    def _gain(self, role: Role | None) -> Names:
        return frozenset({role.tensor}) if role and role.tensor in self._norms else _NOTHING

    def _note(
        self,
        name: str,
        scaled: tuple[torch.Tensor, float] | None,
        tensors: Sequence[torch.Tensor],
        found: Names,
        output: torch.Tensor,
    ) -> None:
        """Keep what may be a site, or may lead to one."""
        at = address(output)
        if len(found) == 1 and found <= set(self._turned):
            self._made[at] = output
            if scaled is not None:
                self._moved[at] = scaled
            elif name in _MOVES:
                source = next(t for t in tensors if self.names(t))
                self._moved[at] = (source, 1.0)
        for gain in found & set(self._norms):
            norm = self._norms[gain]
            if found == norm.parts and output.numel() == norm.numel:
                self._waiting[at] = _Waiting(norm, output)
        if scaled is not None and (known := self._multiples.get(address(scaled[0]))) is not None:
            self._note_multiple(output, known[0], known[1] * scaled[1])

    # Norms that no product reads.

    def _times_constants(
        self, name: str, waiting: _Waiting, tensors: Sequence[torch.Tensor]
    ) -> bool:
        """Whether a number, or one for each channel, multiplies the output of a norm."""
        sizes = (1, self._config.head_size, self._config.n_embd)
        others = [t for t in tensors if address(t) != address(waiting.tensor)]
        constants = [t for t in others if not self.names(t) and t.numel() in sizes]
        return name in ("mul", "mul_", "div", "div_") and bool(constants)

    def _goes_on(self, waiting: _Waiting, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether what reads the output of a norm belongs to the norm itself."""
        here = address(waiting.tensor)
        others = [self.names(t) for t in tensors if address(t) != here]
        return any(names and names <= waiting.norm.parts for names in others)

    def _is_undecided(self, tensor: torch.Tensor) -> None:
        """Nothing that is made of it is the output of this norm."""
        self._names[address(tensor)] = self.names(tensor) | {_UNDECIDED}

    def _show(self, waiting: _Waiting) -> bool:
        norm, tensor = waiting.norm, waiting.tensor
        order = None
        if norm.heads:
            at = [i for i, n in enumerate(tensor.shape[1:-1], 1) if n == self._length]
            if tensor.ndim > 3 and self._length > 1 and len(at) != 1:
                return False  # positions cannot be told from heads
            if tensor.ndim > 3 and self._length > 1 and tensor.shape[0] == self._batch:
                tensor = tensor.movedim(at[0], 1).flatten(2)
            if (begun := self._begun.get(norm.input)) is None:
                return False
            order = begun.order
        shown = self._hand_over(norm.site, tensor, order)
        if shown:
            self.is_site(norm.site, waiting.tensor)
        return shown

    # Turned queries and keys.

    def _look_at_attention(self, operands: Sequence[torch.Tensor]) -> None:
        """The product of queries and keys, if this is it."""
        if len(operands) != 2 or any(len(self.names(x)) != 1 for x in operands):
            return
        pair = [next(iter(self.names(x))) for x in operands]
        if not all(name in self._turned for name in pair):
            return
        turned = [self._turned[name] for name in pair]
        if turned[0].layer != turned[1].layer or turned[0].kind == turned[1].kind:
            return
        factor = 1.0
        for name, site, operand in zip(pair, turned, operands, strict=True):
            factor *= self._show_turned(name, site, operand)
        self._product = (turned[0].layer, factor)
        for known in (self._made, self._moved):
            known.clear()

    def _show_turned(self, name: str, site: Site, operand: torch.Tensor) -> float:
        """Hand over what was turned; returns what it was multiplied with since then."""
        begun = self._begun.pop(name, None)
        rope = self._config.rope(site.layer or 0)
        if begun is None or rope is None:
            return float("nan")
        factor = 1.0
        for value, times in self._history(operand):
            factor *= times
            shown = in_its_order(value, begun, rope, site, self._length)
            if shown is not None:
                self._hand_over(site.name, shown, None)
                return factor
        return float("nan")

    def _history(self, operand: torch.Tensor) -> Iterator[tuple[torch.Tensor, float]]:
        """What an operand is, and what it was before it was moved or multiplied with a number:
        each with the factor that the one before has of it."""
        at, times, seen = address(operand), 1.0, set[int]()
        while at not in seen and (made := self._made.get(at)) is not None:
            seen.add(at)
            # The parts of a complex number are neighbours in memory.
            yield (torch.view_as_real(made).flatten(-2) if made.is_complex() else made), times
            if (moved := self._moved.get(at)) is None:
                return
            source, times = moved
            at = address(source)

    # Scores before a cap, or beside a sink.

    def _note_product(self, name: str, output: torch.Tensor) -> None:
        """The product of queries and keys, if it has just been made."""
        known, self._product = self._product, None
        if known is not None and name in _PRODUCTS:
            self._note_multiple(output, f"h.{known[0]}.attn.scores", known[1])

    def _note_multiple(self, value: torch.Tensor, site: str, factor: float) -> None:
        """A multiple of the products; that which the model calls its scores is handed over."""
        keys, t = self._config.keys, self._length
        if keys.cap is None and not keys.sinks:
            return
        if value.numel() != self._batch * self._config.n_head * t * t:
            return
        self._multiples[address(value)] = (site, factor)
        if value.shape[-2:] != (t, t):
            return  # an axis of heads may be among those of the positions
        scale = keys.scale or self._config.head_size**-0.5
        # A factor may be rounded to the format of what it multiplies, twice.
        if abs(factor / scale - 1) <= 2 * torch.finfo(value.dtype).eps:
            self._hand_over(site, value, None)


def multiple(name: str, arguments: Sequence[Any]) -> tuple[torch.Tensor, float] | None:
    """A value times a number, where an operation is that."""
    if name not in ("mul", "mul_", "div", "div_") or len(arguments) < 2:
        return None
    one, other = arguments[:2]
    if name.startswith("mul") and _is_number(one):
        one, other = other, one
    if not isinstance(one, torch.Tensor) or not _is_number(other):
        return None
    number = float(other)
    return (one, number) if name.startswith("mul") else (one, 1 / number if number else 0.0)


def _is_number(x: Any) -> bool:
    if isinstance(x, torch.Tensor):
        return x.ndim == 0 and not x.is_complex()
    return isinstance(x, (int, float))


def _columns(tensor: torch.Tensor, width: int) -> Iterable[int]:
    """The columns of contiguous rows of this width that a view of them has."""
    columns = {tensor.storage_offset() % width}
    for length, step in zip(tensor.shape, tensor.stride(), strict=True):
        if length > 1 and step % width:
            columns = {at + step * i for at in columns for i in range(length)}
    return columns if max(columns) < width else range(width)
