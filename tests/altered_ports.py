"""Ports with one known mistake each: transformers' GPT-2, altered after it was loaded.

Every alteration is offered as two port factories, ``eager_NAME`` and ``sdpa_NAME``, so that it is
judged in the way in which a user's file is; ``callable_NAME`` shows nothing but its logits.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.port import Port
from gpt_verify.ports.huggingface import huggingface

Alter = Callable[[Any], None]
ALTERATIONS: dict[str, Alter] = {}


def alteration(alter: Alter) -> Alter:
    ALTERATIONS[alter.__name__] = alter
    return alter


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """``forward(module, *args)`` in place of the module's own; its parameters stay its own."""
    module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]  # on purpose


def _then(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change what a module returns."""
    module.register_forward_hook(lambda module, args, output: change(output))


def _norms(model: Any) -> list[nn.LayerNorm]:
    return [m for m in model.modules() if isinstance(m, nn.LayerNorm)]


# Activation


class Gelu(nn.Module):
    """GELU's tanh approximation with constants of one's own."""

    def __init__(self, cubic: float = 0.044715, scale: float = math.sqrt(2 / math.pi)) -> None:
        super().__init__()
        self.cubic, self.scale = cubic, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh(self.scale * (x + self.cubic * x**3)))


@alteration
def exact_gelu(model: Any) -> None:
    for block in model.transformer.h:
        block.mlp.act = nn.GELU()


@alteration
def gelu_0447(model: Any) -> None:
    for block in model.transformer.h:
        block.mlp.act = Gelu(cubic=0.0447)


@alteration
def gelu_short_scale(model: Any) -> None:
    model.transformer.h[2].mlp.act = Gelu(scale=0.79788)


@alteration
def relu(model: Any) -> None:
    model.transformer.h[1].mlp.act = nn.ReLU()


# Layer norm


@alteration
def epsilon_1e6(model: Any) -> None:
    for norm in _norms(model):
        norm.eps = 1e-6


@alteration
def epsilon_10001e9(model: Any) -> None:
    for norm in _norms(model):
        norm.eps = 1.0001e-5


@alteration
def unbiased_variance(model: Any) -> None:
    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = x.var(-1, keepdim=True, correction=1)
        return norm.weight * centred / torch.sqrt(variance + norm.eps) + norm.bias

    _replace_forward(model.transformer.h[1].ln_2, forward)


@alteration
def rms_norm(model: Any) -> None:
    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return norm.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) + norm.bias

    _replace_forward(model.transformer.h[2].ln_1, forward)


@alteration
def no_final_norm(model: Any) -> None:
    _replace_forward(model.transformer.ln_f, lambda norm, x: x)


@alteration
def swapped_norms(model: Any) -> None:
    block = model.transformer.h[1]
    block.ln_1, block.ln_2 = block.ln_2, block.ln_1


# Weights


@alteration
def scaled_matrix(model: Any) -> None:
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight.mul_(1.00001)


@alteration
def half_precision_tensor(model: Any) -> None:
    weight = model.transformer.h[1].mlp.c_fc.weight
    with torch.no_grad():
        weight.copy_(weight.bfloat16().float())


@alteration
def one_bit(model: Any) -> None:
    bits = model.transformer.h[2].mlp.c_proj.bias.data.view(torch.int32)
    bits[5] ^= 1


@alteration
def head_of_its_own(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 1.01)


@alteration
def head_is_a_copy(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


@alteration
def query_key_exchanged(model: Any) -> None:
    c_attn = model.transformer.h[1].attn.c_attn
    width = model.config.n_embd
    for tensor in (c_attn.weight.data, c_attn.bias.data):
        query, key = tensor[..., :width].clone(), tensor[..., width : 2 * width].clone()
        tensor[..., :width], tensor[..., width : 2 * width] = key, query


@alteration
def matrix_transposed(model: Any) -> None:
    """A layout mistake that only a square matrix lets through."""
    weight = model.transformer.h[0].attn.c_proj.weight
    weight.data = weight.data.t().contiguous()


@alteration
def no_mlp_bias(model: Any) -> None:
    def forward(linear: Any, x: torch.Tensor) -> torch.Tensor:
        return x @ linear.weight

    _replace_forward(model.transformer.h[2].mlp.c_fc, forward)


@alteration
def no_projection_bias(model: Any) -> None:
    def forward(linear: Any, x: torch.Tensor) -> torch.Tensor:
        return x @ linear.weight

    _replace_forward(model.transformer.h[1].mlp.c_proj, forward)


# Attention


@alteration
def mask_too_generous(model: Any) -> None:
    """Each position sees the next one as well."""

    def forward(attn: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        length = x.shape[1]
        mask = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype).triu(2)
        kwargs["attention_mask"] = mask[None, None]
        return type(attn).forward(attn, x, *args, **kwargs)

    for block in model.transformer.h:
        _replace_forward(block.attn, forward)


@alteration
def unscaled_scores(model: Any) -> None:
    model.transformer.h[1].attn.scaling = 1.0


@alteration
def scaled_by_width(model: Any) -> None:
    """1/√D in place of 1/√K, in every layer."""
    for block in model.transformer.h:
        block.attn.scaling = model.config.n_embd**-0.5


@alteration
def scaled_by_layer(model: Any) -> None:
    for layer, block in enumerate(model.transformer.h):
        block.attn.scaling /= layer + 1


@alteration
def attention_output_scaled(model: Any) -> None:
    attn = model.transformer.h[1].attn
    attn.register_forward_hook(lambda module, args, output: (output[0] * 1.001, *output[1:]))


def _written_out(attn: Any, x: torch.Tensor, axis: int = -1, interleaved: bool = False) -> Any:
    """Attention step by step, with two ways of getting it wrong."""
    batch, length, width = x.shape
    heads, size = attn.num_heads, attn.head_dim

    def split(part: torch.Tensor) -> torch.Tensor:
        if interleaved:
            return part.view(batch, length, size, heads).permute(0, 3, 1, 2)
        return part.view(batch, length, heads, size).transpose(1, 2)

    q, k, v = (split(part) for part in attn.c_attn(x).split(width, dim=-1))
    scores = (q @ k.transpose(-1, -2)) * attn.scaling
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    mix = torch.softmax(scores, dim=axis) @ v
    return attn.c_proj(mix.transpose(1, 2).reshape(batch, length, width)), None


@alteration
def softmax_over_targets(model: Any) -> None:
    _replace_forward(
        model.transformer.h[1].attn, lambda attn, x, *args, **kwargs: _written_out(attn, x, axis=-2)
    )


@alteration
def heads_interleaved(model: Any) -> None:
    _replace_forward(
        model.transformer.h[1].attn,
        lambda attn, x, *args, **kwargs: _written_out(attn, x, interleaved=True),
    )


@alteration
def head_silenced(model: Any) -> None:
    """The last head of one layer contributes nothing."""
    attn = model.transformer.h[2].attn
    size = attn.head_dim

    def silence(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept = torch.ones(args[0].shape[-1], dtype=args[0].dtype)
        kept[-size:] = 0
        return (args[0] * kept,)

    attn.c_proj.register_forward_pre_hook(silence)


# Wiring


def _block(model: Any, layer: int, forward: Callable[..., torch.Tensor]) -> None:
    """``forward(block, x, attend)`` in place of a block."""

    def whole(block: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("past_key_values", None)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        return forward(block, x, lambda y: block.attn(y, attention_mask=mask)[0])

    _replace_forward(model.transformer.h[layer], whole)


@alteration
def no_attention_residual(model: Any) -> None:
    def forward(block: Any, x: torch.Tensor, attend: Any) -> torch.Tensor:
        middle = attend(block.ln_1(x))
        return middle + block.mlp(block.ln_2(middle))

    _block(model, 1, forward)


@alteration
def no_mlp_residual(model: Any) -> None:
    def forward(block: Any, x: torch.Tensor, attend: Any) -> torch.Tensor:
        return block.mlp(block.ln_2(x + attend(block.ln_1(x))))

    _block(model, 1, forward)


@alteration
def parallel_branches(model: Any) -> None:
    def forward(block: Any, x: torch.Tensor, attend: Any) -> torch.Tensor:
        return x + attend(block.ln_1(x)) + block.mlp(block.ln_2(x))

    _block(model, 1, forward)


@alteration
def residual_from_norm(model: Any) -> None:
    """The residual branch is taken after the layer norm instead of before it."""

    def forward(block: Any, x: torch.Tensor, attend: Any) -> torch.Tensor:
        normed = block.ln_1(x)
        middle = normed + attend(normed)
        return middle + block.mlp(block.ln_2(middle))

    _block(model, 1, forward)


@alteration
def layer_twice(model: Any) -> None:
    blocks = model.transformer.h
    _then(blocks[1], lambda x: type(blocks[1]).forward(blocks[1], x))


@alteration
def layers_exchanged(model: Any) -> None:
    blocks = model.transformer.h
    first, second = blocks[1], blocks[2]
    blocks[1], blocks[2] = second, first


# Embedding and head


@alteration
def positions_shifted(model: Any) -> None:
    """One past the table's end at full length, where it raises."""
    model.transformer.wpe.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


@alteration
def positions_shifted_clipped(model: Any) -> None:
    last = model.config.n_positions - 1
    model.transformer.wpe.register_forward_pre_hook(
        lambda module, args: (torch.clamp(args[0] + 1, max=last),)
    )


@alteration
def embedding_scaled(model: Any) -> None:
    _then(model.transformer.wte, lambda x: x * model.config.n_embd**0.5)


@alteration
def soft_cap(model: Any) -> None:
    _then(model.lm_head, lambda x: 30 * torch.tanh(x / 30))


@alteration
def shifted_logits(model: Any) -> None:
    """A constant for each position, to which softmax is blind."""
    _then(model.lm_head, lambda x: x - x.mean(-1, keepdim=True))


@alteration
def gelu_in_bfloat16(model: Any) -> None:
    act = model.transformer.h[1].mlp.act
    model.transformer.h[1].mlp.act = nn.Sequential(act)
    act.register_forward_pre_hook(lambda module, args: (args[0].bfloat16(),))
    act.register_forward_hook(lambda module, args, output: output.to(model.dtype))


@alteration
def temperature(model: Any) -> None:
    _then(model.lm_head, lambda x: x / 0.99)


# Chance


@alteration
def dropout_left_on(model: Any) -> None:
    _then(model.transformer.h[1].mlp, lambda x: F.dropout(x, 0.1, training=True))


@alteration
def nondeterministic(model: Any) -> None:
    """Every other call, one logit is one unit in the last place higher."""
    calls = 0

    def nudge(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        x = x.clone()
        if calls % 2:
            x[0, 0, 0] = torch.nextafter(x[0, 0, 0], torch.tensor(math.inf, dtype=x.dtype))
        return x

    _then(model.lm_head, nudge)


@alteration
def unaltered(model: Any) -> None:
    """The control: nothing that is done to build these ports is a fault by itself."""


def _factory(attention: str, name: str) -> Callable[[Checkpoint], Port]:
    def factory(checkpoint: Checkpoint) -> Port:
        port = huggingface(checkpoint, attention)  # type: ignore[arg-type]  # one of the two
        ALTERATIONS[name](port.module)
        return port

    return factory


def _logits_only(name: str) -> Callable[[Checkpoint], Callable[[Any], Any]]:
    def factory(checkpoint: Checkpoint) -> Callable[[Any], Any]:
        return _factory("sdpa", name)(checkpoint).logits

    return factory


for _name in ALTERATIONS:
    for _attention in ("eager", "sdpa"):
        globals()[f"{_attention}_{_name}"] = _factory(_attention, _name)
    globals()[f"callable_{_name}"] = _logits_only(_name)
