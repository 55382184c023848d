"""The default checkpoint's model in torch, for training only.

Parameters carry the checkpoint's names and shapes (``reference.tensor_table``), so that what is
trained is what is written, without a conversion. The oracle in ``reference/`` is the definition;
``--evaluate`` uses that and not this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_verify.reference import Config, tensor_table

Parameters = dict[str, Tensor]

#: Parts of the residual stream that the initial circuit uses; training is free to mix them.
TOKEN, POSITION, PREVIOUS = slice(0, 64), slice(64, 96), slice(96, 128)
#: Length of a token's row and of a position's row at the start.
ROW_LENGTH = 0.6


def initial_parameters(config: Config, seed: int) -> Parameters:
    """GPT-2's initialisation, and the outline of an induction circuit in three heads.

    From random numbers alone, copying takes longer to appear than the whole training here. So
    three heads of sixteen start as the circuit that larger models find by themselves (Elhage et
    al. 2021; Olsson et al. 2022). It is a start and no more: every number is trained afterwards,
    and what the heads end up doing is decided by the text.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters: Parameters = {}
    for name, spec in tensor_table(config).items():
        if spec.role == "gain":
            value = torch.ones(spec.shape)
        elif spec.role == "bias":
            value = torch.zeros(spec.shape)
        else:
            std = 0.01 if name == "wpe" else 0.02
            if name.endswith("c_attn/w"):  # 0.02 suits a width of 768; 1/√n_in does everywhere
                std = spec.shape[0] ** -0.5
            if name.endswith("c_proj/w"):
                std /= (2 * config.n_layer) ** 0.5
            value = torch.randn(spec.shape, generator=generator) * std
        parameters[name] = value
    outline_induction(parameters, config, generator)
    return {name: value.requires_grad_() for name, value in parameters.items()}


def outline_induction(parameters: Parameters, config: Config, generator: torch.Generator) -> None:
    """Layer 0 writes which token came before; layer 1 looks for what came after this token.

    The factors bring the scores of a match to about 14 (its rivals, 250 of them, are near 0) and
    what is written to the length of a token's row or a few times that.
    """
    d, k = config.n_embd, config.head_size
    wte, wpe = parameters["wte"], parameters["wpe"]
    width = TOKEN.stop - TOKEN.start
    rows = torch.randn(config.n_vocab, width, generator=generator)
    wte[:, TOKEN] = rows * ROW_LENGTH / width**0.5

    # Positions: k / 2 rotations of random speed. "One later" is one more turn, the same everywhere.
    speed = torch.rand(k // 2, generator=generator) * torch.pi
    angle = torch.arange(config.n_ctx)[:, None] * speed
    wpe[:, POSITION] = torch.cat([angle.cos(), angle.sin()], 1) * ROW_LENGTH / (k // 2) ** 0.5
    cos, sin = torch.diag(speed.cos()), torch.diag(speed.sin())
    one_later = torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])

    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    halves = basis[:, :k], basis[:, k:]

    def head(layer: int, number: int) -> list[Tensor]:
        """Views of one head's query, key, value [D, K] and output [K, D], emptied."""
        attention = parameters[f"h{layer}/attn/c_attn/w"].view(d, 3, config.n_head, k)
        output = parameters[f"h{layer}/attn/c_proj/w"].view(config.n_head, k, d)
        views = [*attention[:, :, number].unbind(1), output[number]]
        for view in views:
            view.zero_()
        return views

    query, key, value, output = head(0, 0)
    query[POSITION] = 1.1 * torch.eye(k)
    key[POSITION] = 1.1 * one_later
    value[TOKEN] = halves[0]
    output[:, PREVIOUS] = 0.11 * torch.eye(k)
    for number, half in enumerate(halves):
        query, key, value, output = head(1, number)
        query[TOKEN] = 1.7 * halves[0]
        key[PREVIOUS] = 1.7 * torch.eye(k)
        value[TOKEN] = half
        output[:, TOKEN] = 0.3 * half.T


def hidden(parameters: Parameters, config: Config, tokens: Tensor) -> Tensor:
    """tokens int[B, T] → ln_f's output [B, T, D]; the caller unembeds the positions it needs."""
    p = parameters
    batch, length = tokens.shape
    width = (config.n_embd,)

    def norm(x: Tensor, scope: str) -> Tensor:
        return F.layer_norm(x, width, p[f"{scope}/g"], p[f"{scope}/b"], 1e-5)

    def conv1d(x: Tensor, scope: str) -> Tensor:
        return F.linear(x, p[f"{scope}/w"].T, p[f"{scope}/b"])

    x = F.embedding(tokens, p["wte"]) + p["wpe"][:length]
    for layer in range(config.n_layer):
        h = f"h{layer}"
        qkv = conv1d(norm(x, f"{h}/ln_1"), f"{h}/attn/c_attn")
        q, k, v = qkv.view(batch, length, 3, config.n_head, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + conv1d(mixed.transpose(1, 2).reshape(batch, length, -1), f"{h}/attn/c_proj")
        wide = F.gelu(conv1d(norm(x, f"{h}/ln_2"), f"{h}/mlp/c_fc"), approximate="tanh")
        x = x + conv1d(wide, f"{h}/mlp/c_proj")
    return norm(x, "ln_f")


def scored_loss(parameters: Parameters, config: Config, rows: Tensor, scored: Tensor) -> Tensor:
    """The mean cross entropy over the scored tokens, in nats.

    Args:
        parameters: name → tensor.
        config: sizes.
        rows: ids, int[B, T + 1].
        scored: which of them count, bool[B, T + 1].
    """
    x = hidden(parameters, config, rows[:, :-1])[scored[:, 1:]]
    return F.cross_entropy((x @ parameters["wte"].T).float(), rows[:, 1:][scored[:, 1:]])
