"""The two branches of a block, attention and MLP, and what both need of their layer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.activations import ACTIVATIONS, gated
from gpt_verify.reference.config import Config
from gpt_verify.reference.experts import mixture, routing
from gpt_verify.reference.ops import (
    Array,
    attention_mix,
    attention_scores,
    causal_softmax,
    heads_of,
    layer_norm,
    linear,
    rms_norm,
    shared,
    side_by_side,
    soft_cap,
    split_heads,
)
from gpt_verify.reference.positions import alibi, rotate, slopes, turns

#: Checkpoint name → array. Lazy mappings are welcome: a tensor is looked up where it is used and
#: dropped afterwards.
Weights = Mapping[str, NDArray[np.floating]]
Site = tuple[str, Array]
Round = Callable[[Array], Array]
Lookup = Callable[[str], Array]
#: Yields its sites, and returns what it makes of the stream.
Steps = Generator[Site, None, Array]


@dataclass(frozen=True)
class Layer:
    """One layer of a model, and how its values are stored.

    Attributes:
        config: sizes and architecture.
        number: from 0 on.
        w: looks up a tensor by its checkpoint name.
        store: what a port would keep of a value.
    """

    config: Config
    number: int
    w: Lookup
    store: Round

    def site(self, kind: str, value: Array) -> Steps:
        """Yield a value, ``mlp.out``, as it is stored."""
        value = self.store(value)
        yield f"h.{self.number}.{kind}", value
        return value

    def linear(self, kind: str, x_Ti: Array, tensors: str, bias: bool) -> Steps:
        """A product with a matrix of this layer: ``attn/c_proj``.

        Args:
            kind: of the site that it makes, ``attn.out``.
            x_Ti: the input.
            tensors: scope of the matrix and of its bias, without the layer.
            bias: there is one.
        """
        return self.site(kind, self.product(x_Ti, tensors, bias))

    def product(self, x_Ti: Array, tensors: str, bias: bool) -> Array:
        """The same, without a site."""
        scope = f"h{self.number}/{tensors}"
        return linear(x_Ti, self.w(f"{scope}/w"), self.w(f"{scope}/b") if bias else None)

    def norm(self, kind: str, x_TD: Array) -> Steps:
        """A norm of this layer: ``ln_1``."""
        return self.site(kind, norm(x_TD, f"h{self.number}/{kind}", self.config, self.w))


def norm(x_TD: Array, scope: str, config: Config, w: Lookup) -> Array:
    """The model's kind of norm, over the last axis. Gemma's gain is 1 + g (gemma_pytorch
    ``gemma/model.py``, ``RMSNorm``).

    Args:
        x_TD: the input.
        scope: of the gain and the bias, ``h0/ln_1``.
        config: sizes and architecture.
        w: name → tensor.
    """
    kind, g_D = config.keys.norm, w(f"{scope}/g")
    if not kind.rms:
        return layer_norm(x_TD, g_D, w(f"{scope}/b"), kind.epsilon)
    return rms_norm(x_TD, 1 + g_D if kind.plus_one else g_D, kind.epsilon)


def attention(x_TD: Array, layer: Layer) -> Steps:
    """Multi-head causal self-attention: gpt-2 ``src/model.py:69``."""
    config, keys = layer.config, layer.config.keys
    heads = fused if keys.fused else separate
    q_HTK, k_HSK, v_HSK = yield from heads(x_TD, layer)
    scores_HTS = yield from layer.site("attn.scores", attention_scores(q_HTK, k_HSK, keys.scale))
    if keys.cap is not None:
        scores_HTS = yield from layer.site("attn.capped", soft_cap(scores_HTS, keys.cap))
    if keys.alibi:
        sloped_HTS = alibi(scores_HTS, slopes(config.n_head))
        scores_HTS = yield from layer.site("attn.sloped", sloped_HTS)
    sinks_H = layer.w(f"h{layer.number}/attn/sinks") if keys.sinks else None
    pattern_HTS = causal_softmax(scores_HTS, config.window(layer.number), sinks_H)
    del scores_HTS  # large, and not read again
    pattern_HTS = yield from layer.site("attn.pattern", pattern_HTS)
    mix_TX = attention_mix(pattern_HTS, v_HSK)
    del pattern_HTS
    mix_TX = yield from layer.site("attn.mix", mix_TX)
    tensors = "attn/c_proj" if keys.fused else "attn/o"
    return (yield from layer.linear("attn.out", mix_TX, tensors, keys.bias_out))


#: Yields its sites, and returns q, k and v, each [H, T, K].
Heads = Generator[Site, None, tuple[Array, Array, Array]]


def fused(x_TD: Array, layer: Layer) -> Heads:
    """Queries, keys and values side by side, from one matrix."""
    qkv_TC = yield from layer.linear("attn.qkv", x_TD, "attn/c_attn", bias=True)
    return split_heads(qkv_TC, layer.config.n_head)


def separate(x_TD: Array, layer: Layer) -> Heads:
    """Queries, keys and values come from a matrix each; queries and keys are normed and turned
    where the model has it so, in this order (Qwen 3: Yang et al. 2025, section 2; OLMo 2: OLMo Team
    2024, section 3.2.1)."""
    config, keys, w = layer.config, layer.config.keys, layer.w
    made = {}
    for part in "qkv":
        made[part] = yield from layer.linear(f"attn.{part}", x_TD, f"attn/{part}", keys.bias_qkv)
    for part, n in (("q", config.n_head), ("k", config.n_kv)):
        if keys.qk_norm is not None:
            scope, x = f"h{layer.number}/attn/{part}_norm", made[part]
            normed = (
                norm(x, scope, config, w)
                if keys.qk_norm == "all"
                else side_by_side(norm(heads_of(x, n), scope, config, w))
            )
            made[part] = yield from layer.site(f"attn.{part}_norm", normed)
    rope = config.rope(layer.number)
    for part, n in (("q", config.n_head), ("k", config.n_kv)):
        if rope is not None:
            x_HTK = heads_of(made[part], n)
            cos_TR, sin_TR = turns(rope, np.arange(len(x_TD)), x_TD.dtype.type)
            turned = side_by_side(rotate(x_HTK, cos_TR, sin_TR, rope))
            made[part] = yield from layer.site(f"attn.{part}_rot", turned)
    q_HTK, k_GSK, v_GSK = (
        heads_of(made["q"], config.n_head),
        heads_of(made["k"], config.n_kv),
        heads_of(made["v"], config.n_kv),
    )
    return q_HTK, shared(k_GSK, config.n_head), shared(v_GSK, config.n_head)


def mlp(x_TD: Array, layer: Layer) -> Steps:
    """Two matrices with GELU between them: gpt-2 ``src/model.py:116``; or another function, a
    gate, or several of them to choose from."""
    keys = layer.config.keys
    if keys.experts is not None:
        return (yield from experts(x_TD, layer))
    if keys.gated:
        gate_TF = yield from layer.linear("mlp.gate", x_TD, "mlp/gate", keys.bias_mlp)
        up_TF = yield from layer.linear("mlp.up", x_TD, "mlp/up", keys.bias_mlp)
        act_TF = yield from layer.site("mlp.act", gated(keys.activation, gate_TF, up_TF))
        return (yield from layer.linear("mlp.out", act_TF, "mlp/down", keys.bias_mlp))
    pre_TF = yield from layer.linear("mlp.pre", x_TD, "mlp/c_fc", keys.bias_mlp)
    act_TF = yield from layer.site("mlp.act", ACTIVATIONS[keys.activation](pre_TF))
    return (yield from layer.linear("mlp.out", act_TF, "mlp/c_proj", keys.bias_mlp))


def experts(x_TD: Array, layer: Layer) -> Steps:
    """Gated MLPs, of which each token takes a few: Jiang et al. 2024 (Mixtral), section 2.1."""
    keys = layer.config.keys
    assert keys.experts is not None, "a model of experts"
    logits_TE = yield from layer.linear("mlp.router", x_TD, "mlp/router", keys.experts.bias)
    weights_TE = yield from layer.site("mlp.routing", routing(logits_TE, keys.experts))

    def expert(e: int, rows_TD: Array) -> Array:
        scope, bias = f"mlp/experts/{e}", keys.bias_mlp
        gate_TF = layer.product(rows_TD, f"{scope}/gate", bias)
        up_TF = layer.product(rows_TD, f"{scope}/up", bias)
        act_TF = gated(keys.activation, gate_TF, up_TF)
        return layer.product(act_TF, f"{scope}/down", bias)

    return (yield from layer.site("mlp.out", mixture(x_TD, weights_TE, expert)))
