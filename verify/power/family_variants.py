"""Correct ports of the families, written in the ways that are in use: transformers' own model in
every attention and format, with steps written otherwise, and called otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.faults.decoder import Decoder, rebind
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import F, torch
from gpt_verify.faults.qkv_order import by_head
from gpt_verify.faults.rms_norm import inject, torch_eps
from gpt_verify.faults.rotary import turn
from gpt_verify.port import Dtype, Port
from gpt_verify.power import calls
from gpt_verify.reference.config import Config

Build = Callable[[Checkpoint], Port]
#: Formats in which a family's model is judged.
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Rewrite:
    """A step of transformers' model that is written otherwise.

    Attributes:
        write: changes every layer of a model.
        of: which models have the step.
        dtypes: in which formats the other way computes the same.
    """

    write: Callable[[Decoder], None]
    of: Callable[[Config], bool]
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")


# Matrices


class _Whole:
    """One product that makes several parts, which are handed out one by one.

    Args:
        linear: it.
        sizes: of the parts.
    """

    def __init__(self, linear: Any, sizes: list[int]) -> None:
        self.linear, self.sizes = linear, sizes
        self._made: tuple[Any, ...] = ()

    def part(self, index: int, x: Any) -> Any:
        if index == 0 or not self._made:
            self._made = self.linear(x).split(self.sizes, dim=-1)
        part = self._made[index]
        if index == len(self.sizes) - 1:
            self._made = ()  # of one call, and nothing that a copy of the module would have to hold
        return part


def _join(module: Any, fused: str, names: tuple[str, ...]) -> None:
    """The linear layers of a module become one, of whose product each name is a part."""
    layers = [getattr(module, name) for name in names]
    sizes = [layer.out_features for layer in layers]
    biased = layers[0].bias is not None
    linear = torch.nn.Linear(layers[0].in_features, sum(sizes), bias=biased)
    linear.weight = torch.nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
    if biased:
        linear.bias = torch.nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))
    setattr(module, fused, linear)
    whole = _Whole(linear, sizes)
    for index, name in enumerate(names):
        setattr(module, name, _part(whole, index))


def _part(whole: _Whole, index: int) -> Any:
    class Part(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.index = whole, index

        def forward(self, x: Any) -> Any:
            return self.whole.part(self.index, x)

    return Part()


def fused_qkv(decoder: Decoder) -> None:
    for layer in range(decoder.config.n_layer):
        _join(decoder.attention(layer), "qkv_proj", ("q_proj", "k_proj", "v_proj"))


def fused_gate_up(decoder: Decoder) -> None:
    for layer in range(decoder.config.n_layer):
        _join(decoder.around("mlp/down", layer), "gate_up_proj", ("gate_proj", "up_proj"))


# Rotary positions


def _by_complex(x: Any, cos: Any, sin: Any) -> Any:
    """Channels half of R apart are the parts of one complex number."""
    a, b = x.float().chunk(2, dim=-1)
    turned = torch.complex(a, b) * torch.complex(cos.to(a.dtype), sin.to(a.dtype))
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def _neighbours_by_complex(x: Any, cos: Any, sin: Any) -> Any:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    by = torch.complex(cos.to(pairs.real.dtype), sin.to(pairs.real.dtype))
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)


def complex_rotary(decoder: Decoder) -> None:
    for layer in range(decoder.config.n_layer):
        rope = decoder.config.rope(layer)
        if rope is not None:
            turn(decoder, layer, _neighbours_by_complex if rope.pairs else _by_complex)


# Norms


def torch_rms(decoder: Decoder) -> None:
    one = 1.0 if decoder.config.keys.norm.plus_one else 0.0

    def forward(norm: Any, x: Any) -> Any:
        return F.rms_norm(x, x.shape[-1:], norm.weight + one, torch_eps(norm))

    inject(forward, decoder, range(decoder.config.n_layer))


def norm_by_hand(decoder: Decoder) -> None:
    def forward(norm: Any, x: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
        return centred * scale * norm.weight + norm.bias

    norms = decoder.norms(("ln_1", "ln_2", "ln_f"), range(decoder.config.n_layer))
    for norm in norms:
        replace(norm, "forward", forward)


# Attention


def kernel_shares_heads(decoder: Decoder) -> None:
    """torch's own attention, which is told that heads share keys and values."""

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any
    ) -> Any:
        made = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
        return made.transpose(1, 2).contiguous(), None

    for layer in range(decoder.config.n_layer):
        rebind(decoder.attention(layer), "forward", eager_attention_forward=attend)


def einsums(decoder: Decoder) -> None:
    """Heads are split into groups, and each product is an einsum."""

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any
    ) -> Any:
        grouped = query.unflatten(1, (key.shape[1], -1)) * scaling
        scores = torch.einsum("bghtk,bgsk->bghts", grouped, key)
        scores = scores + mask[:, None]
        pattern = scores.float().softmax(-1).to(query.dtype)
        mixed = torch.einsum("bghts,bgsk->btghk", pattern, value)
        return mixed.flatten(2, 3), pattern.flatten(1, 2)

    for layer in range(decoder.config.n_layer):
        rebind(decoder.attention(layer), "forward", eager_attention_forward=attend)


def _separate(config: Config) -> bool:
    """q, k and v are made by three matrices, in modules of those names."""
    return not by_head(config)


def _gated(config: Config) -> bool:
    return config.keys.gated and config.keys.experts is None


def _plain_attention(config: Config) -> bool:
    """transformers calls a function that nothing but the scale and the mask is given to."""
    keys = config.keys
    own = config.architecture in ("gptj", "gpt_neo", "bloom")
    return not (own or keys.sinks or keys.cap is not None)


def _turned(config: Config) -> bool:
    return any(rope is not None for rope in config.keys.ropes)


REWRITES: dict[str, Rewrite] = {
    "q, k and v in one matrix": Rewrite(fused_qkv, _separate),
    "gate and up in one matrix": Rewrite(fused_gate_up, _gated),
    "rotary positions by complex numbers": Rewrite(complex_rotary, _turned),
    "F.rms_norm": Rewrite(torch_rms, lambda config: config.keys.norm.rms, ("float32",)),
    "norm by hand": Rewrite(norm_by_hand, lambda config: not config.keys.norm.rms, ("float32",)),
    "a kernel that shares heads": Rewrite(kernel_shares_heads, _plain_attention),
    "einsum by groups": Rewrite(einsums, _plain_attention),
}


def _among_others(model: Any, ids: Any) -> Any:
    others = (ids.flip(0) + 1) % model.config.vocab_size
    return calls.plain(model, torch.cat([others, ids, others]))[len(ids) : 2 * len(ids)]


#: Ways of calling, of ports that show nothing but logits.
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "logits only": calls.plain,
    "decoded with a cache": calls.decoded,
    "in a batch with others": _among_others,
    "row by row": calls.row_by_row,
}


def _built(checkpoint: Checkpoint, *, attention: Any, dtype: Dtype) -> Port:
    from gpt_verify.ports import registry

    return registry.build(f"huggingface-{attention}", checkpoint, dtype, "cpu")


def _rewritten(checkpoint: Checkpoint, *, name: str, rewrite: Rewrite, dtype: Dtype) -> Port:
    from gpt_verify.ports.huggingface import huggingface
    from gpt_verify.ports.huggingface_family import Altered

    def module(made: Any) -> None:
        rewrite.write(Decoder(made, checkpoint.config))

    altered = Altered(name, lambda config: None, module)
    return huggingface(checkpoint, "eager", dtype, altered=altered)


def _called(
    checkpoint: Checkpoint, *, name: str, call: Callable[[Any, Any], Any], dtype: Dtype
) -> Port:
    from gpt_verify.ports.callable import CallablePort
    from gpt_verify.ports.huggingface import huggingface

    attention: Any = FAMILIES[checkpoint.config.architecture].attention[-1]
    model = huggingface(checkpoint, attention, dtype).module

    def logits(tokens: Any) -> Any:
        with torch.no_grad():
            return call(model, torch.from_numpy(np.asarray(tokens, np.int64)))

    return CallablePort(logits, name, dtype)


def _named(name: str, dtype: Dtype) -> str:
    return name if dtype == "float32" else f"{name}, {dtype}"


def plain(config: Config) -> dict[str, Build]:
    """transformers' own model, in every attention that it has."""
    return {
        _named(f"huggingface-{attention}", dtype): partial(_built, attention=attention, dtype=dtype)
        for attention in FAMILIES[config.architecture].attention
        for dtype in DTYPES
    }


def every(config: Config) -> dict[str, Build]:
    """All correct variants of a family's model, by name."""
    found = plain(config)
    for name, rewrite in REWRITES.items():
        if rewrite.of(config):
            for dtype in rewrite.dtypes:
                full = _named(name, dtype)
                found[full] = partial(_rewritten, name=full, rewrite=rewrite, dtype=dtype)
    for name, call in CALLS.items():
        for dtype in DTYPES[:2]:
            full = _named(name, dtype)
            found[full] = partial(_called, name=full, call=call, dtype=dtype)
    return found
