"""The keys by which one family of decoders differs from another, with GPT-2's values as defaults.

A key says what is computed, and never whose idea it was: a model is its sizes and these keys. What
a family calls them in its files is said in ``gpt_verify.checkpoint.families``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

Activation = Literal["gelu", "gelu_exact", "gelu_bloom", "silu", "relu", "swish_clamped"]


class ConfigError(ValueError):
    """The sizes or the keys are impossible, incomplete, or not those of a model that is known."""


@dataclass(frozen=True)
class Norm:
    """The norm that the stream passes before something reads it.

    Attributes:
        rms: RMS norm, which neither centres nor has a bias; otherwise layer norm.
        epsilon: inside the root.
        plus_one: the gain is 1 + g (Gemma).
    """

    rms: bool = False
    epsilon: float = 1e-5
    plus_one: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ConfigError(f"epsilon = {self.epsilon} is no number from 0 on")
        if self.plus_one and not self.rms:
            raise ConfigError("plus_one: a layer norm has no gain 1 + g")


@dataclass(frozen=True)
class Scaling:
    """A change of the rotary frequencies, so that a model reads further than it was trained.

    Attributes:
        kind: ``linear``, ``llama3`` or ``yarn`` (``reference.rope``).
        factor: by how much further.
        trained: positions that the model was trained on before; not used by ``linear``.
        low, high: of ``llama3``, ``low_freq_factor`` and ``high_freq_factor``; of ``yarn``, the
            turns within ``trained`` below which a frequency is divided (1), and above which it is
            kept (32).
        attention: by which cosine and sine are multiplied; 1 but for ``yarn``.
        whole: of ``yarn``, where the ramp between the two begins and ends is rounded to a pair.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    trained: int = 0
    low: float = 1.0
    high: float = 32.0
    attention: float = 1.0
    whole: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn"):
            raise ConfigError(f"rope scaling {self.kind!r} is none of linear, llama3, yarn")
        if not 0 < self.factor < math.inf:
            raise ConfigError(f"rope scaling: factor = {self.factor} is not positive")
        if self.kind != "linear" and not (self.trained >= 1 and 0 < self.low < self.high):
            raise ConfigError(
                f"rope scaling {self.kind}: trained = {self.trained}, low = {self.low} and "
                f"high = {self.high} should be positive, and low below high"
            )


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a layer.

    Attributes:
        theta: the base; pair i of R channels turns by p θ^(-2i/R) at position p.
        size: R, how many channels of a head are turned, the first ones; even.
        pairs: channels 2i and 2i + 1 are turned together (GPT-J); otherwise i and i + R/2.
        scaling: None where frequencies are what the base makes them.
    """

    theta: float
    size: int
    pairs: bool = False
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if not 0 < self.theta < math.inf:
            raise ConfigError(f"theta = {self.theta} is not positive")
        if self.size < 2 or self.size % 2:
            raise ConfigError(f"{self.size} rotary channels are not in pairs")


@dataclass(frozen=True)
class Experts:
    """Several MLPs in the place of one, of which each token takes a few.

    Attributes:
        count: E, how many there are.
        chosen: how many a token takes, those with the largest logits.
        renormalised: the weights of those sum to 1: they are a softmax over the chosen alone.
            Otherwise over all E.
        bias: the router has one.
    """

    count: int
    chosen: int
    renormalised: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.count:
            raise ConfigError(f"{self.chosen} of {self.count} experts cannot be chosen")


@dataclass(frozen=True)
class Architecture:
    """What one family of models does otherwise than another, whatever the sizes.

    ``windows`` and ``ropes`` go by layer: layer i has element i, and a tuple that is shorter than
    the model is deep begins again.

    Attributes:
        norm_first: what a branch (attention, MLP) reads is normed: x + f(norm(x)).
        norm_last: a norm of its own, ``ln_f``, stands before the head.
        norm_branch: what a branch has made is normed: x + norm(f(x)). Where neither is true, the
            sum is: norm(x + f(x)).
        parallel: how many norms there are where both branches read the same stream, and both are
            added to it: one for the two, or one each. 0 where the MLP reads what attention left.
        norm: which one, wherever there is one.
        norm_embed: the embeddings are normed as well.
        scale_embed: they are multiplied with √D.
        table: positions have a table of embeddings.
        table_offset: its row for position 0.
        ropes: rotary positions of each layer; None where it has none.
        alibi: scores fall with the distance.
        fused: queries, keys and values are one matrix, ``c_attn``; otherwise three.
        n_kv: G, how many heads of keys and values there are; None for H.
        size: K, channels of a head; None for D/H.
        scale: what scores are multiplied with; None for 1/√K.
        cap: c of c tanh(score/c); None for none.
        qk_norm: queries and keys are normed, each head over its channels or all of them together.
        windows: W, how many sources a target sees, itself the last; None for all.
        sinks: each head has a logit that joins the softmax and is dropped.
        bias_qkv, bias_out, bias_mlp, bias_head: these products have one.
        gated: the MLP is act(x Wg) · (x Wu); otherwise act(x W).
        activation: one of ``Activation``.
        n_inner: F, the width within an MLP; None for 4 D.
        experts: None for one MLP.
        cap_logits: c of c tanh(logit/c); None for none.
    """

    norm_first: bool
    norm_last: bool
    norm_branch: bool = False
    parallel: Literal[0, 1, 2] = 0
    norm: Norm = Norm()
    norm_embed: bool = False
    scale_embed: bool = False
    table: bool = True
    table_offset: int = 0
    ropes: tuple[Rope | None, ...] = (None,)
    alibi: bool = False
    fused: bool = True
    n_kv: int | None = None
    size: int | None = None
    scale: float | None = None
    cap: float | None = None
    qk_norm: Literal["head", "all"] | None = None
    windows: tuple[int | None, ...] = (None,)
    sinks: bool = False
    bias_qkv: bool = True
    bias_out: bool = True
    bias_mlp: bool = True
    bias_head: bool = False
    gated: bool = False
    activation: Activation = "gelu"
    n_inner: int | None = None
    experts: Experts | None = None
    cap_logits: float | None = None

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise ConfigError(f"activation = {self.activation!r} is not known")
        if self.qk_norm not in (None, "head", "all"):
            raise ConfigError(f"qk_norm = {self.qk_norm!r} is neither head nor all")
        if self.parallel not in (0, 1, 2):
            raise ConfigError(f"parallel = {self.parallel!r} norms are none of 0, 1, 2")
        if self.parallel and (self.norm_branch or not self.norm_first):
            raise ConfigError("parallel branches are normed first, and nowhere else")
        if self.activation == "swish_clamped" and not self.gated:
            raise ConfigError("swish_clamped is an activation of gated MLPs alone")
        for name in ("scale", "cap", "cap_logits"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value} is not positive")
        if self.fused:
            for name in ("n_kv", "size", "qk_norm", "ropes", "sinks", "bias_qkv"):
                if getattr(self, name) != _DEFAULT[name]:
                    raise ConfigError(f"{name}: queries, keys and values in one matrix have none")
        if self.table_offset and not self.table:
            raise ConfigError("table_offset: there is no table of positions")
        if self.experts and not self.gated:
            raise ConfigError("experts are gated MLPs")

    @property
    def norm_sum(self) -> bool:
        """The sum is normed: norm(x + f(x))."""
        return not self.norm_first and not self.norm_branch

    def check(self, n_embd: int, n_head: int, n_layer: int) -> None:
        """Whether such sizes can have these keys.

        Raises:
            ConfigError: they cannot.
        """
        if self.size is None and n_embd % n_head:
            raise ConfigError(f"n_embd = {n_embd} is not divisible by n_head = {n_head}")
        size = n_embd // n_head if self.size is None else self.size
        kv = n_head if self.n_kv is None else self.n_kv
        if kv < 1 or n_head % kv:
            raise ConfigError(f"n_head = {n_head} is not divisible by n_kv = {kv}")
        for name, value in (("size", size), ("n_inner", self.inner(n_embd))):
            if value < 1:
                raise ConfigError(f"{name} = {value} is not positive")
        if self.table_offset < 0:
            raise ConfigError(f"table_offset = {self.table_offset} is negative")
        for name in ("windows", "ropes"):
            if not 1 <= len(getattr(self, name)) <= n_layer:
                raise ConfigError(f"{name}: there are {n_layer} layers, and these are of others")
        for window in self.windows:
            if window is not None and window < 1:
                raise ConfigError(f"a window of {window} shows nothing")
        for rope in self.ropes:
            if rope is not None and rope.size > size:
                raise ConfigError(f"{rope.size} rotary channels are not among {size}")

    def inner(self, n_embd: int) -> int:
        """F."""
        return 4 * n_embd if self.n_inner is None else self.n_inner


_DEFAULT = {field.name: field.default for field in fields(Architecture)}
