"""The forward pass, yielding every intermediate tensor under its site name as it is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.branches import (
    Layer,
    Round,
    Site,
    Steps,
    Weights,
    attention,
    mlp,
    norm,
)
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, embed, soft_cap, unembed

#: Attention or an MLP.
Branch = Callable[[Array], Steps]


def forward(
    weights: Weights,
    config: Config,
    tokens_T: NDArray[np.integer],
    dtype: type[np.floating] = np.float64,
    store: Round = lambda x: x,
) -> Iterator[Site]:
    """Run the model on one sequence and yield ``(site, value)`` in the order of computation.

    Args:
        weights: the checkpoint's tensors; matrices ``[in, out]``.
        config: sizes and architecture.
        tokens_T: token ids, 1 ≤ T ≤ n_ctx.
        dtype: the precision that the arithmetic is done in.
        store: rounds a value to the precision in which a port would keep it. The identity, unless
            the noise of a narrower format is being measured.

    Raises:
        ValueError: an empty or too long sequence, or an id outside the vocabulary.
    """
    tokens_T = np.asarray(tokens_T)
    if tokens_T.ndim != 1 or not np.issubdtype(tokens_T.dtype, np.integer):
        found = f"{tokens_T.dtype}{list(tokens_T.shape)}"
        raise ValueError(f"tokens must be a vector of integers, not {found}")
    if not 1 <= len(tokens_T) <= config.n_ctx:
        raise ValueError(f"{len(tokens_T)} tokens; the model takes 1 … {config.n_ctx}")
    if tokens_T.min() < 0 or tokens_T.max() >= config.n_vocab:
        raise ValueError(f"token ids must lie in 0 … {config.n_vocab - 1}")

    def w(name: str) -> Array:
        return np.asarray(weights[name], dtype)

    keys = config.keys
    tables = (weights["wte"], weights["wpe"] if keys.table else None)
    x_TD = store(embed(tokens_T, *tables, dtype, keys.table_offset, config.embed_scale))
    yield "embed", x_TD
    if keys.norm_embed:
        x_TD = store(norm(x_TD, "ln_embed", config, w))
        yield "ln_embed", x_TD
    for layer in range(config.n_layer):
        for site, value in block(x_TD, Layer(config, layer, w, store)):
            yield site, value
        x_TD = value
    if keys.norm_last:
        x_TD = store(norm(x_TD, "ln_f", config, w))
        yield "ln_f", x_TD
    logits_TV = unembed(x_TD, w(config.head))
    if keys.bias_head:
        logits_TV = logits_TV + w("lm_head/b")
    if keys.cap_logits is not None:
        logits_TV = soft_cap(logits_TV, keys.cap_logits)
    yield "logits", store(logits_TV)


def block(x_TD: Array, layer: Layer) -> Iterator[Site]:
    """One transformer block: gpt-2 ``src/model.py:124``; Radford et al. 2018, equation 2."""
    attend, think = partial(attention, layer=layer), partial(mlp, layer=layer)
    if layer.config.keys.parallel:
        yield from side_by_side(x_TD, attend, think, layer)
        return
    half = norm_after if layer.config.keys.norm_sum else norm_inside
    x_TD = yield from half(x_TD, attend, "ln_1", "resid_mid", layer)
    yield from half(x_TD, think, "ln_2", "resid_post", layer)


def norm_inside(x_TD: Array, branch: Branch, ln: str, resid: str, layer: Layer) -> Steps:
    """x + f(ln(x)), GPT-2's half of a block: gpt-2 ``src/model.py:127``.

    Or x + ln(f(x)): OLMo 2 (OLMo Team 2024, section 3.2.1). Or both, each with a norm of its own:
    Gemma 2 (Gemma Team 2024, section 2).

    Args:
        x_TD: the residual stream.
        branch: f, attention or the MLP.
        ln: the norm's kind of site, ``ln_1``.
        resid: the sum's kind of site, ``resid_mid``.
        layer: the layer that both are in.
    """
    read_TD = x_TD
    if layer.config.keys.norm_first:
        read_TD = yield from layer.norm(ln, x_TD)
    out_TD = yield from branch(read_TD)
    if layer.config.keys.norm_branch:
        out_TD = yield from layer.norm(f"{ln}_after", out_TD)
    return (yield from layer.site(resid, x_TD + out_TD))


def norm_after(x_TD: Array, branch: Branch, ln: str, resid: str, layer: Layer) -> Steps:
    """ln(x + f(x)), GPT's: finetune-transformer-lm ``train.py:140``; Vaswani et al. 2017, 3.1.

    The arguments are those of ``norm_inside``.
    """
    out_TD = yield from branch(x_TD)
    x_TD = yield from layer.site(resid, x_TD + out_TD)
    return (yield from layer.norm(ln, x_TD))


def side_by_side(x_TD: Array, attend: Branch, think: Branch, layer: Layer) -> Steps:
    """x + attention(ln_1(x)) + mlp(ln_2(x)): Black et al. 2022 (GPT-NeoX), section 2.1.

    GPT-J has one norm for the two (mesh-transformer-jax ``mesh_transformer/layers.py``,
    ``TransformerLayerShard``).

    Args:
        x_TD: the residual stream.
        attend, think: attention and the MLP.
        layer: the layer that both are in.
    """
    read_TD = yield from layer.norm("ln_1", x_TD)
    attended_TD = yield from attend(read_TD)
    if layer.config.keys.parallel == 2:
        read_TD = yield from layer.norm("ln_2", x_TD)
    thought_TD = yield from think(read_TD)
    return (yield from layer.site("resid_post", x_TD + attended_TD + thought_TD))


def logits(weights: Weights, config: Config, tokens_T: NDArray[np.integer]) -> Array:
    """The last site alone: float64[T, V]."""
    ((_site, value),) = deque(forward(weights, config, tokens_T), maxlen=1)
    return value
