"""Whether a port that keeps q, k and v of each head side by side reads them so.

The bits of such a ``c_attn`` are the checkpoint's in another order. That is a way of storing it,
and it is also what a converter leaves behind that forgot to put them in order. Nothing in the
weights tells the two apart; what the port makes of its own ``attn.qkv`` does: its ``attn.mix`` is
the attention of q, k and v as it reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from gpt_verify.matching.assembly import Assembly
from gpt_verify.matching.layouts import Layout
from gpt_verify.matching.match import Matching
from gpt_verify.matching.order import Reading
from gpt_verify.port import Floats, Parameter
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.ports.torch.module import TorchModule

_LENGTH = 8
#: What a port reads is met to within rounding; of two readings that both miss, because its
#: attention is wrong in some other way, neither is nearer by an order of magnitude.
_NEARER = 10.0


@dataclass(frozen=True)
class Channels:
    """The order in which a port's ``attn.qkv`` has query, key and value, heads, and their channels.

    Attributes:
        sizes: lengths of these axes in the port's order.
        order: what makes it the checkpoint's.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]

    def to_checkpoint_layout(self, qkv_BTC: torch.Tensor) -> torch.Tensor:
        """Put channels into the checkpoint's order: all queries, all keys, all values, each head by
        head."""
        apart = qkv_BTC.unflatten(-1, self.sizes)
        return apart.permute(0, 1, *(2 + i for i in self.order)).flatten(2)


def channels_of(
    port: TorchModule, parameters: Sequence[Parameter], matching: Matching
) -> Channels | None:
    """How a port reads a ``c_attn`` that lies by heads; None where it reads it as if it did not.

    The port is run once. The order of what it computes is found first (it may have put the matrix
    in order before it used it), and what it reads is what its ``attn.mix`` is nearer to.
    """
    lying = next(p for p in matching.placements if p.layout.by_head and p.tensor.endswith("/w"))
    at, layout = f"h.{lying.tensor.split('/')[0][1:]}", lying.layout
    sizes, order = layout.channel_axes()
    as_laid = Channels(tuple(sizes), tuple(order))
    straight = Channels(tuple(sizes[i] for i in order), tuple(range(len(sizes))))
    seen = _of_layer(port, at, _sites(port))
    if seen is None:
        return as_laid  # not shown: content is all there is, and the logits will tell
    x, qkv, shown_mix = seen
    weight, bias = _in_checkpoint_layout(parameters, matching, lying.tensor, layout)
    expected = x @ weight + bias
    found = min((as_laid, straight), key=lambda c: _apart(c.to_checkpoint_layout(qkv), expected))
    n_head = port.config.n_head
    mixes = [_attention(c.to_checkpoint_layout(qkv), n_head) for c in (found, straight)]
    reads_so, reads_straight = (_apart(mix, shown_mix) for mix in mixes)
    return None if _NEARER * reads_straight < reads_so else found


class Readings:
    """How a port reads ``c_attn`` and ``c_proj`` where these lie in another order; it is run once.

    Its ``attn.mix`` is the attention of its ``attn.qkv`` in the order in which it reads both. Of
    the orders in which they were found and the one in which they would be read plainly, those
    count in which the one is nearer to the attention of the other.
    """

    def __init__(self, port: TorchModule) -> None:
        self._port = port
        self._assemblies = {assembly.tensor: assembly for assembly in port.assemblies}

    @cached_property
    def _held(self) -> dict[str, Parameter]:
        return {p.name: p for p in self._port.parameters()}

    @cached_property
    def _sites(self) -> dict[str, torch.Tensor]:
        return _sites(self._port)

    def of(self, layer: int) -> Reading:
        """Content is all there is where the port does not show it; the logits will tell."""
        seen = _of_layer(self._port, f"h.{layer}", self._sites)
        if seen is None:
            return Reading(qkv=True, mix=True)
        x, qkv, mix = seen
        fused = self._assemblies.get(f"h{layer}/attn/c_attn/w")
        plain_qkv, ordered = qkv, False
        if fused is not None and fused.form == "columns":
            plain_qkv = _plainly(qkv, fused)
            expected = x @ self._tensor(fused.tensor) + self._bias(layer)
            ordered = _apart(plain_qkv, expected) < _apart(qkv, expected)
        out = self._assemblies.get(f"h{layer}/attn/c_proj/w")
        plain_mix = _plainly(mix, out) if out is not None and out.form == "rows" else mix
        n_head = self._port.config.n_head
        made = _attention(plain_qkv if ordered else qkv, n_head)
        made_plainly = _attention(plain_qkv, n_head)
        missed = {
            (True, True): _apart(made, mix),
            (True, False): _apart(made, plain_mix),
            (False, True): _apart(made_plainly, mix),
            (False, False): _apart(made_plainly, plain_mix),
        }
        nearest = min(missed, key=lambda way: missed[way])
        way = nearest if _NEARER * missed[nearest] < missed[True, True] else (True, True)
        return Reading(qkv=way[0], ordered=ordered, mix=way[1])

    def _tensor(self, name: str) -> torch.Tensor:
        """The port's own, as the checkpoint has it."""
        (placement,) = (p for p in self._port.matching.placements if p.tensor == name)
        value = placement.layout.to_checkpoint_layout(self._held[placement.parameter].read())
        return torch.from_numpy(value.astype(np.float64))

    def _bias(self, layer: int) -> torch.Tensor:
        """The bias of ``c_attn``; zeros where it lies in parts, since a product without it tells
        the order as well."""
        name = f"h{layer}/attn/c_attn/b"
        placed = [p for p in self._port.matching.placements if p.tensor == name]
        if len(placed) == 1 and placed[0].part is None:
            return self._tensor(name)
        return torch.zeros(3 * self._port.config.n_embd, dtype=torch.float64)


def _plainly(value: torch.Tensor, assembly: Assembly) -> torch.Tensor:
    """What was put in the checkpoint's order, as it is where the port reads it in the order in
    which it lies."""
    laid = value[..., list(assembly.order)]
    made = torch.empty_like(laid)
    made[..., list(assembly.straightened.order)] = laid
    return made


def _of_layer(
    port: TorchModule, at: str, seen: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, ...] | None:
    """What attention reads, ``attn.qkv`` and ``attn.mix``; None where one of them is not shown."""
    qkv, mix = f"{at}.attn.qkv", f"{at}.attn.mix"
    names = (*sites(port.config)[qkv].inputs, qkv, mix)
    return tuple(seen[name] for name in names) if set(names) <= seen.keys() else None


def _sites(port: TorchModule) -> dict[str, torch.Tensor]:
    """What attention reads and makes in every layer, of a few tokens."""
    seen: dict[str, torch.Tensor] = {}
    table = sites(port.config)
    wanted = {name for name in table if name.endswith((".attn.qkv", ".attn.mix"))}
    wanted |= {x for name in wanted if name.endswith("qkv") for x in table[name].inputs}

    def visit(site: str, value: Floats, narrowest: str | None = None) -> None:
        if site in wanted:
            seen[site] = torch.from_numpy(np.array(value, np.float64))

    n_vocab = port.config.n_vocab
    length = min(_LENGTH, port.config.n_ctx)
    tokens = np.random.default_rng(0).integers(0, n_vocab, (1, length), dtype=np.int64)
    port.activations(tokens, visit)
    return seen


def _in_checkpoint_layout(
    parameters: Sequence[Parameter], matching: Matching, tensor: str, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    """The port's own weight and bias of that product, as the checkpoint has them."""
    read = {p.name: p.read for p in parameters}
    placed = {p.tensor: p for p in matching.placements}
    weight = torch.from_numpy(
        layout.to_checkpoint_layout(read[placed[tensor].parameter]()).astype(np.float64)
    )
    bias = placed.get(tensor.removesuffix("w") + "b")
    if bias is None or bias.part is not None:
        return weight, torch.zeros(weight.shape[-1], dtype=torch.float64)
    value = bias.layout.to_checkpoint_layout(read[bias.parameter]()).astype(np.float64)
    return weight, torch.from_numpy(value)


def _attention(qkv_BTC: torch.Tensor, n_head: int) -> torch.Tensor:
    """Torch's own, causal, [B, T, D]."""
    parts = qkv_BTC.chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in parts)
    mix = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mix.transpose(1, 2).flatten(2)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """RMS of the difference; what is not finite is farthest."""
    value = float((a - b).square().mean().sqrt())
    return value if np.isfinite(value) else float("inf")
