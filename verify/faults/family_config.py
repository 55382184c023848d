"""Keys of transformers' configurations, which families and versions call otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What the activation, ε and the window are called.
ACTIVATION = ("hidden_activation", "hidden_act", "activation_function")
EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")


def put(config: Any, names: tuple[str, ...], value: Any) -> None:
    """Set the key that the configuration has of these."""
    name = next(name for name in names if hasattr(config, name))
    setattr(config, name, value)


def each_rope(config: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what is said of the rotary positions, of each kind of layer."""
    said: dict[str, Any] = config.rope_parameters
    if any(isinstance(value, dict) for value in said.values()):
        config.rope_parameters = {kind: change(dict(one)) for kind, one in said.items()}
    else:
        config.rope_parameters = change(dict(said))
