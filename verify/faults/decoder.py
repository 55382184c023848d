"""transformers' model of a family, of which faults ask for parts by the checkpoint's names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.reference.config import Config


class Decoder:
    """One model that was built.

    Args:
        model: with a head.
        config: what it is a model of.
    """

    def __init__(self, model: Any, config: Config) -> None:
        self.model, self.config = model, config
        self._places = FAMILIES[config.architecture].places(config)

    def at(self, scope: str, layer: int | None = None) -> Any:
        """The module that has a tensor: ``wte``, or ``attn/q`` of a layer."""
        if scope in ("wte", "lm_head"):  # files and modules call them otherwise
            tables = self.model.get_input_embeddings, self.model.get_output_embeddings
            return tables[scope == "lm_head"]()
        return self.model.get_submodule(self._path(scope, layer))

    def around(self, scope: str, layer: int) -> Any:
        """The module that has that module: ``attn/q`` is in the attention of its layer."""
        return self.model.get_submodule(self._path(scope, layer).rpartition(".")[0])

    def attention(self, layer: int) -> Any:
        return self.around("attn/q", layer)

    def each(self, scopes: Sequence[str], layers: Sequence[int]) -> list[Any]:
        """The modules of these scopes that the layers have."""
        return [self.at(s, i) for s in scopes for i in layers if self._has(s, i)]

    def norms(self, scopes: Sequence[str], layers: Sequence[int]) -> list[Any]:
        """The norms of these layers that the model has; the last one belongs to all together."""
        found = self.each(scopes, layers)
        last = "ln_f" in scopes and len(layers) == self.config.n_layer
        return [*found, self.at("ln_f")] if last else found

    def _has(self, scope: str, layer: int) -> bool:
        if f"h#/{scope}" not in self._places:
            return False
        names = (name for name, _ in self.model.named_modules())
        return self._path(scope, layer) in names

    def _path(self, scope: str, layer: int | None) -> str:
        place = self._places[scope if layer is None else f"h#/{scope}"]
        path = place if isinstance(place, str) else place.scope
        return path.replace("#", str(layer))


def rebound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The same function, for which these global names mean something else."""
    own: Any = inspect.unwrap(function)
    read = {**own.__globals__, **names}
    copy = FunctionType(own.__code__, read, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    return copy


def global_of(module: Any, method: str, name: str) -> Any:
    """What a global name means in a method of this module."""
    function: Any = inspect.unwrap(getattr(module, method).__func__)
    return function.__globals__[name]


def rebind(module: Any, method: str, **names: Any) -> None:
    """``rebound``, of a method of this one module."""
    setattr(module, method, MethodType(rebound(getattr(module, method).__func__, **names), module))
