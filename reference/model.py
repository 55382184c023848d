"""The forward pass, yielding every intermediate tensor under its site name as it is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from reference.ops import (
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
        config: sizes.
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
        for site, value in block(x_TD, layer, config.n_head, w, store):
            yield site, value
        x_TD = value
    x_TD = store(layer_norm(x_TD, w("ln_f/g"), w("ln_f/b")))
    yield "ln_f", x_TD
    yield "logits", store(unembed(x_TD, w("wte")))


def block(
    x_TD: Array, layer: int, n_head: int, w: Callable[[str], Array], store: Round
) -> Iterator[Site]:
    """One transformer block, layer norm first: gpt-2 ``src/model.py:124``."""
    at, scope = f"h.{layer}", f"h{layer}"

    ln_1_TD = store(layer_norm(x_TD, w(f"{scope}/ln_1/g"), w(f"{scope}/ln_1/b")))
    yield f"{at}.ln_1", ln_1_TD
    qkv_TC = store(linear(ln_1_TD, w(f"{scope}/attn/c_attn/w"), w(f"{scope}/attn/c_attn/b")))
    yield f"{at}.attn.qkv", qkv_TC
    q_HTK, k_HSK, v_HSK = split_heads(qkv_TC, n_head)
    scores_HTS = store(attention_scores(q_HTK, k_HSK))
    yield f"{at}.attn.scores", scores_HTS
    pattern_HTS = store(causal_softmax(scores_HTS))
    yield f"{at}.attn.pattern", pattern_HTS
    mix_TD = store(attention_mix(pattern_HTS, v_HSK))
    yield f"{at}.attn.mix", mix_TD
    out_TD = store(linear(mix_TD, w(f"{scope}/attn/c_proj/w"), w(f"{scope}/attn/c_proj/b")))
    yield f"{at}.attn.out", out_TD
    mid_TD = store(x_TD + out_TD)
    yield f"{at}.resid_mid", mid_TD

    ln_2_TD = store(layer_norm(mid_TD, w(f"{scope}/ln_2/g"), w(f"{scope}/ln_2/b")))
    yield f"{at}.ln_2", ln_2_TD
    pre_TF = store(linear(ln_2_TD, w(f"{scope}/mlp/c_fc/w"), w(f"{scope}/mlp/c_fc/b")))
    yield f"{at}.mlp.pre", pre_TF
    act_TF = store(gelu(pre_TF))
    yield f"{at}.mlp.act", act_TF
    out_TD = store(linear(act_TF, w(f"{scope}/mlp/c_proj/w"), w(f"{scope}/mlp/c_proj/b")))
    yield f"{at}.mlp.out", out_TD
    yield f"{at}.resid_post", store(mid_TD + out_TD)


def logits(weights: Weights, config: Config, tokens_T: NDArray[np.integer]) -> Array:
    """The last site alone: float64[T, V]."""
    ((_site, value),) = deque(forward(weights, config, tokens_T), maxlen=1)
    return value
