"""The record of one family of decoders, and what most of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import Places, llama
from gpt_verify.reference import Architecture, Config
from gpt_verify.reference.architecture import Norm


@dataclass(frozen=True)
class Family:
    """The way in which a family's files say what a model is.

    Attributes:
        name: ``model_type``.
        read: its ``config.json`` → the model.
        example: keys of a small model, beside the sizes, in which whatever the family has matters;
            those that go by layer are functions of the model's depth.
        places: where its tensors lie.
        model: the class of its models, as ``architectures`` names it.
        base: before the name of a tensor; files of the model without a head leave it out.
        attention: what transformers can compute attention with.
        unread: what older versions stored besides, and no version reads: a regular expression.
        released: size → all keys of the ``config.json`` that its authors released, of the sizes
            that ``gpt-verify synth --family`` can write.
    """

    name: str
    read: Callable[[Keys], Config]
    example: dict[str, Any]
    model: str
    places: Callable[[Config], Places] = lambda config: llama()
    base: str = "model."
    attention: tuple[str, ...] = ("eager", "sdpa")
    unread: str = r".*\.rotary_emb\.inv_freq"
    released: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def sizes(keys: Keys) -> dict[str, int]:
    """The five sizes in the words of most families."""
    return {
        "n_vocab": keys.integer("vocab_size"),
        "n_ctx": keys.integer("max_position_embeddings", "n_positions", "seq_length"),
        "n_embd": keys.integer("hidden_size", "n_embd", "n_embed"),
        "n_head": keys.integer("num_attention_heads", "num_heads", "n_head"),
        "n_layer": keys.integer("num_hidden_layers", "num_layers", "n_layer"),
    }


def like_llama(
    keys: Keys,
    name: str,
    tied: bool = False,
    epsilon: float = 1e-6,
    theta: float = 10_000.0,
    plus_one: bool = False,
    change: Callable[[dict[str, int], int], dict[str, Any]] = lambda sizes, head: {},
) -> Config:
    """RMS norm, rotary positions in halves, grouped heads, a gated MLP, and what else it has.

    Args:
        keys: of the file.
        name: of the family.
        tied, epsilon, theta: where the file does not say.
        plus_one: see ``Norm``.
        change: the sizes and K → other keys of ``Architecture``.
    """
    found = sizes(keys)
    head = keys.integer("head_dim", default=None)
    size = head or max(1, found["n_embd"] // max(1, found["n_head"]))
    given: dict[str, Any] = {
        "norm": Norm(True, keys.number("rms_norm_eps", default=epsilon), plus_one),
        "table": False,
        "fused": False,
        "n_kv": keys.integer("num_key_value_heads", default=found["n_head"]),
        "size": head,
        "gated": True,
        "n_inner": keys.integer("intermediate_size"),
        "bias_mlp": False,
        **change(found, size),
    }
    bias = given.pop("bias", None)
    if bias is None:
        bias = keys.flag("attention_bias", False)
    given = {"bias_qkv": bias, "bias_out": bias, **given}
    if "ropes" not in given:
        given["ropes"] = (keys.rope(size, theta),)
    if "activation" not in given:
        given["activation"] = keys.activation("hidden_act", default="silu")
    own = Architecture(**{"norm_first": True, "norm_last": True, **given})
    return keys.config(name, found, own, keys.flag("tie_word_embeddings", tied))


def plain_config(
    keys: Keys,
    name: str,
    partial: float,
    default: str,
    parallel: Literal[0, 1, 2],
    bias: bool,
    bias_head: bool = False,
) -> Config:
    """Layer norm, rotary positions in halves on a part of each head, an MLP without a gate.

    Args:
        keys: of the file.
        name: of the family.
        partial, default: the part and the activation where the file does not say.
        parallel, bias_head: see ``Architecture``.
        bias: attention has them.
    """
    found = sizes(keys)
    size = max(1, found["n_embd"] // max(1, found["n_head"]))
    own = Architecture(
        norm_first=True,
        norm_last=True,
        parallel=parallel,
        norm=Norm(epsilon=keys.number("layer_norm_eps", default=1e-5)),
        table=False,
        ropes=(keys.rope(size, partial=partial),),
        fused=False,
        n_kv=keys.integer("num_key_value_heads", default=None),
        bias_qkv=bias,
        bias_out=bias,
        bias_head=bias_head,
        activation=keys.activation("hidden_act", default=default),
        n_inner=keys.integer("intermediate_size", default=None),
    )
    return keys.config(name, found, own, keys.flag("tie_word_embeddings", False))


def windows_of_qwen(keys: Keys, depth: int) -> tuple[int | None, ...]:
    """Layers have a window from ``max_window_layers`` on, where the model has windows at all."""
    first = keys.integer("max_window_layers", default=28)
    window = keys.integer("sliding_window", default=None)
    window = window if keys.flag("use_sliding_window", False) else None
    windowed = [window is not None and layer >= first for layer in range(depth)]
    kinds = ["sliding_attention" if one else "full_attention" for one in windowed]
    return keys.layers(depth, window, kinds)


def windows_by_turns(keys: Keys, depth: int, full: int, default: int) -> tuple[int | None, ...]:
    """One layer in ``full`` sees everything, the last of each group; the others see a window.

    Args:
        keys: what ``config.json`` states.
        depth: number of layers.
        full: length of a group, in layers.
        default: the window in tokens, where ``sliding_window`` is not stated.
    """
    window = keys.integer("sliding_window", default=default)
    kinds = ["sliding_attention" if (i + 1) % full else "full_attention" for i in range(depth)]
    return keys.layers(depth, window, kinds)
