"""The keys of a ``config.json``, each asked for by name; what nobody asked for is refused.

transformers accepts any key and any value. Its versions 4 and 5 say the same in other words: the
rotary base alone is ``rope_theta`` in the one and ``rope_parameters.rope_theta`` in the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_verify.checkpoint.files import refusal
from gpt_verify.checkpoint.hf_config import IGNORED
from gpt_verify.errors import CheckpointError
from gpt_verify.reference import Architecture, Config, ConfigError
from gpt_verify.reference.architecture import Activation, Rope, Scaling
from gpt_verify.reference.positions import yarn_attention
from gpt_verify.text import listing

#: transformers' ``ACT2FN`` (``activations.py``), as far as families here use it.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
#: What says nothing about the function, beside what GPT-2's files may have: training, loading,
#: what a library's version wrote down for itself.
# fmt: off
UNREAD = IGNORED | {
    "architectures", "attention_dropout", "attention_softmax_in_fp32", "auto_map",
    "bias_dropout_fusion", "cache_implementation", "classifier_dropout", "dropout",
    "embed_dropout", "hidden_dropout", "init_std", "initial_context_length", "is_encoder_decoder",
    "layerdrop", "masked_softmax_fusion", "offset_alibi", "output_router_logits",
    "pretraining_tp", "resid_dropout", "router_aux_loss_coef", "router_jitter_noise",
    "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact", "unk_token_id",
}
# fmt: on
#: What ``Keys.rope`` reads, of either version.
_OF_ROPE = (
    "partial_rotary_factor",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rotary_emb_base",
    "rotary_pct",
)
#: What stands for no default: the key must be there.
_REQUIRED: Any = object()


class Keys:
    """The keys that a ``config.json`` states, until they have been asked for.

    Args:
        path: the file, for messages.
        stated: its keys.
    """

    def __init__(self, path: Path, stated: Mapping[str, object]) -> None:
        self._path, self._stated = path, stated
        self._left = {key: value for key, value in stated.items() if key != "model_type"}

    def take(self, *names: str, default: Any = _REQUIRED) -> Any:
        """The value of a key, which may have several names; None counts as absent, unless it is
        the default."""
        found = {name: self._left.pop(name) for name in names if name in self._left}
        values = [value for value in found.values() if value is not None]
        if any(value != values[0] for value in values):
            raise self.refused(f"{' and '.join(found)} disagree: {_shown(*values)}")
        if values:
            return values[0]
        if default is _REQUIRED:
            raise self.refused(f"missing: {names[0]}")
        return default

    def integer(self, *names: str, default: Any = _REQUIRED) -> Any:
        """A whole number, or the default."""
        value = self.take(*names, default=default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.refused(f"{names[0]} = {_shown(value)} is not an integer")
        return value

    def number(self, *names: str, default: Any = _REQUIRED) -> Any:
        """A finite number, or the default."""
        value = self.take(*names, default=default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not default and not (number and math.isfinite(value)):
            raise self.refused(f"{names[0]} = {_shown(value)} is not a number")
        return value if value is default else float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default=default)
        if not isinstance(value, bool):
            raise self.refused(f"{name} = {_shown(value)} is neither true nor false")
        return value

    def only(self, **allowed: object) -> None:
        """Keys that change the function and may say nothing else; None where a family has none."""
        for name, right in allowed.items():
            value = self.take(name, default=right)
            if type(value) is not type(right) or value != right:
                raise self.refused(f"{name} = {_shown(value)}, should be {_shown(right)}")

    def activation(self, *names: str, default: str) -> Activation:
        value = self.take(*names, default=default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            known = " or ".join(map(_shown, ACTIVATIONS))
            raise self.refused(f"{names[0]} = {_shown(value)}, should be {known}")
        return ACTIVATIONS[value]

    def tanh_gelu(self) -> Activation:
        """Gemma's, which files have called by several names, and one of them is another function's;
        ``hidden_activation`` has the last word, and without a word it is this."""
        old = self.take("hidden_act", default=None)
        named = self.take("hidden_activation", default=old or "gelu_pytorch_tanh")
        if ACTIVATIONS.get(named) != "gelu":
            raise self.refused(f"hidden_activation = {_shown(named)}, should be gelu_pytorch_tanh")
        return "gelu"

    def layers(self, depth: int, window: int | None, default: list[str]) -> tuple[int | None, ...]:
        """The window of each layer, where ``layer_types`` says which have it."""
        kinds = self.take("layer_types", default=default)
        known = {"sliding_attention": window, "full_attention": None}
        if not isinstance(kinds, list) or len(kinds) != depth or set(kinds) - set(known):
            raise self.refused(f"layer_types is not {_shown(*known)} of {depth} layers")
        if window is None and "sliding_attention" in kinds:
            raise self.refused("layer_types has sliding_attention, but there is no sliding_window")
        return tuple(known[kind] for kind in kinds)

    def rope(
        self,
        size: int,
        theta: float = 10_000.0,
        partial: float = 1.0,
        pairs: bool = False,
        kind: str | None = None,
    ) -> Rope:
        """How queries and keys are turned, in the words of either version.

        Args:
            size: K.
            theta: the base where nothing is said.
            partial: what part of K is turned, where nothing is said.
            pairs: see ``Rope``.
            kind: of which layers, where ``rope_parameters`` has several.
        """
        stated = self._left.get("rope_parameters") or {}
        if kind is not None and isinstance(stated, dict) and kind in stated:
            stated = stated[kind]
        elif kind is not None and stated:
            raise self.refused(f"rope_parameters has no {kind}")
        old = self._left.get("rope_scaling") or {}
        if not isinstance(stated, dict) or not isinstance(old, dict):
            raise self.refused("rope_parameters or rope_scaling is no mapping")
        at = Keys(self._path, {**old, **stated})
        base = at.number("rope_theta", default=None)
        share = at.number("partial_rotary_factor", default=None)
        flat = () if kind is not None and stated else ("rope_theta", "rotary_emb_base")
        above = [self._left.get(name) for name in flat]
        for value in above:
            if value is not None and base is not None and value != base:
                raise self.refused(f"rope_theta is {_shown(base)} and {_shown(value)}")
            base = value if base is None else base
        for name in ("partial_rotary_factor", "rotary_pct"):
            share = self._left.get(name) if share is None else share
        scaling = at.scaling(self._stated.get("max_position_embeddings"))
        at.done("rope_parameters")
        turned = int(size * (partial if share is None else share))
        try:
            return Rope(float(theta if base is None else base), turned, pairs, scaling)
        except (ConfigError, TypeError, ValueError) as error:
            raise self.refused(f"rope_parameters: {error}") from None

    def local_rope(self, size: int, theta: float) -> Rope:
        """That of layers with a window, where it is another one: version 5 has it in
        ``rope_parameters``, version 4 nothing but its base."""
        if self._left.get("rope_parameters"):
            return self.rope(size, theta, kind="sliding_attention")
        return Rope(self.number("rope_local_base_freq", default=theta), size)

    def rope_read(self) -> None:
        """All of the above has been asked for."""
        for name in _OF_ROPE:
            self._left.pop(name, None)

    def scaling(self, positions: object) -> Scaling | None:
        """How frequencies are scaled; these keys are those of ``rope_parameters``."""
        kind = self.take("rope_type", "type", default="default")
        if kind == "default":
            return None
        if kind not in ("linear", "llama3", "yarn"):
            raise self.refused(
                f"rope_type = {_shown(kind)}, should be default, linear, llama3 or yarn"
            )
        factor = self.number("factor")
        if kind == "linear":
            return Scaling("linear", factor)
        trained = self.integer("original_max_position_embeddings", default=positions)
        if kind == "llama3":
            low, high = self.number("low_freq_factor"), self.number("high_freq_factor")
            return Scaling("llama3", factor, trained, low, high)
        return Scaling(
            "yarn",
            factor,
            trained,
            self.number("beta_slow", default=1.0),
            self.number("beta_fast", default=32.0),
            self.number("attention_factor", default=yarn_attention(factor)),
            self.flag("truncate", True),
        )

    def config(
        self, family: str, sizes: Mapping[str, int], own: Architecture, tied: bool
    ) -> Config:
        """The model that the keys describe; a key that nobody has asked for is refused.

        Args:
            family: the architecture's name, ``model_type``.
            sizes: vocabulary, context, width, heads and layers, by our names.
            own: in what the model differs from others.
            tied: the head is wte.
        """
        self.rope_read()
        self.done("")
        try:
            return Config.from_mapping(sizes, family, tied, own)
        except ConfigError as error:
            raise self.refused(str(error)) from None

    def done(self, where: str) -> None:
        """Refuses what is left."""
        if unknown := sorted(set(self._left) - UNREAD):
            inside = f" in {where}" if where else ""
            raise self.refused(f"unknown key{inside}: {listing(unknown)}")

    def refused(self, what: str) -> CheckpointError:
        return refusal(self._path, what)


def _shown(*values: object) -> str:
    """The values are written as they stand in the file."""
    return ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
