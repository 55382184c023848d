"""The forward pass, yielding every intermediate tensor under its site name as it is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import (
    Array,
    attention_mix,
    attention_scores,
    causal_softmax,
    embed,
    gelu,
    layer_norm,
    linear,
    split_heads,
    unembed,
)

#: Checkpoint name → array. Lazy mappings are welcome: a tensor is looked up where it is used and
#: dropped afterwards.
Weights = Mapping[str, NDArray[np.floating]]
Site = tuple[str, Array]
Round = Callable[[Array], Array]
Lookup = Callable[[str], Array]
#: Yields its sites, and returns what it makes of the stream.
Steps = Generator[Site, None, Array]
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

    x_TD = store(embed(tokens_T, weights["wte"], weights["wpe"], dtype))
    yield "embed", x_TD
    for layer in range(config.n_layer):
        for site, value in block(x_TD, layer, config, w, store):
            yield site, value
        x_TD = value
    if config.norm_last:
        x_TD = store(layer_norm(x_TD, w("ln_f/g"), w("ln_f/b")))
        yield "ln_f", x_TD
    yield "logits", store(unembed(x_TD, w(config.head)))


def block(x_TD: Array, layer: int, config: Config, w: Lookup, store: Round) -> Iterator[Site]:
    """One transformer block: gpt-2 ``src/model.py:124``; Radford et al. 2018, equation 2."""
    attend = partial(attention, layer=layer, n_head=config.n_head, w=w, store=store)
    think = partial(mlp, layer=layer, w=w, store=store)
    half = norm_first if config.norm_first else norm_after
    x_TD = yield from half(x_TD, attend, f"h.{layer}.ln_1", f"h.{layer}.resid_mid", w, store)
    yield from half(x_TD, think, f"h.{layer}.ln_2", f"h.{layer}.resid_post", w, store)


def norm_first(x_TD: Array, branch: Branch, ln: str, resid: str, w: Lookup, store: Round) -> Steps:
    """x + f(ln(x)), GPT-2's half of a block: gpt-2 ``src/model.py:127``."""
    normed_TD = store(layer_norm(x_TD, *affine(ln, w)))
    yield ln, normed_TD
    out_TD = yield from branch(normed_TD)
    x_TD = store(x_TD + out_TD)
    yield resid, x_TD
    return x_TD


def norm_after(x_TD: Array, branch: Branch, ln: str, resid: str, w: Lookup, store: Round) -> Steps:
    """ln(x + f(x)), GPT's: finetune-transformer-lm ``train.py:140``; Vaswani et al. 2017, 3.1."""
    out_TD = yield from branch(x_TD)
    x_TD = store(x_TD + out_TD)
    yield resid, x_TD
    normed_TD = store(layer_norm(x_TD, *affine(ln, w)))
    yield ln, normed_TD
    return normed_TD


def affine(ln: str, w: Lookup) -> tuple[Array, Array]:
    """Gain and bias of a layer norm: of ``h.3.ln_1``, ``h3/ln_1/g`` and ``h3/ln_1/b``."""
    _h, layer, name = ln.split(".")
    return w(f"h{layer}/{name}/g"), w(f"h{layer}/{name}/b")


def attention(x_TD: Array, layer: int, n_head: int, w: Lookup, store: Round) -> Steps:
    """Multi-head causal self-attention: gpt-2 ``src/model.py:69``."""
    at, scope = f"h.{layer}.attn", f"h{layer}/attn"
    qkv_TC = store(linear(x_TD, w(f"{scope}/c_attn/w"), w(f"{scope}/c_attn/b")))
    yield f"{at}.qkv", qkv_TC
    q_HTK, k_HSK, v_HSK = split_heads(qkv_TC, n_head)
    scores_HTS = store(attention_scores(q_HTK, k_HSK))
    yield f"{at}.scores", scores_HTS
    pattern_HTS = store(causal_softmax(scores_HTS))
    del scores_HTS  # large, and not read again
    yield f"{at}.pattern", pattern_HTS
    mix_TD = store(attention_mix(pattern_HTS, v_HSK))
    del pattern_HTS
    yield f"{at}.mix", mix_TD
    out_TD = store(linear(mix_TD, w(f"{scope}/c_proj/w"), w(f"{scope}/c_proj/b")))
    yield f"{at}.out", out_TD
    return out_TD


def mlp(x_TD: Array, layer: int, w: Lookup, store: Round) -> Steps:
    """Two matrices with GELU between them: gpt-2 ``src/model.py:116``."""
    at, scope = f"h.{layer}.mlp", f"h{layer}/mlp"
    pre_TF = store(linear(x_TD, w(f"{scope}/c_fc/w"), w(f"{scope}/c_fc/b")))
    yield f"{at}.pre", pre_TF
    act_TF = store(gelu(pre_TF))
    yield f"{at}.act", act_TF
    out_TD = store(linear(act_TF, w(f"{scope}/c_proj/w"), w(f"{scope}/c_proj/b")))
    yield f"{at}.out", out_TD
    return out_TD


def logits(weights: Weights, config: Config, tokens_T: NDArray[np.integer]) -> Array:
    """The last site alone: float64[T, V]."""
    ((_site, value),) = deque(forward(weights, config, tokens_T), maxlen=1)
    return value
