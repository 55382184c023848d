"""Ports in half precision that follow recipes by construction, without any engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import run
from gpt_verify.numerics.precision import PRECISIONS, Precision
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.port import Dtype, Port, Visit
from gpt_verify.recipes.arithmetic import Span
from gpt_verify.recipes.recipe import Read
from gpt_verify.recipes.table import recipes_of

Array = NDArray[Any]


class RoundingPort(Port):
    """Computes every site as a recipe says, and shows it.

    Args:
        source: the weights.
        dtype: of half precision.
        recipes: site, kind or operation → the recipe; the first one of the table otherwise.
        hides: kinds of sites that it does not show.
    """

    def __init__(
        self,
        source: Checkpoint,
        dtype: Dtype = "bfloat16",
        recipes: Mapping[str, str] | None = None,
        hides: tuple[str, ...] = (),
    ) -> None:
        self.name, self.dtype = "rounding", dtype
        self._source, self._recipes, self._hides = source, recipes or {}, hides
        self._precision = PRECISIONS[dtype]
        self._weights = DeclaredWeights(source.tensors, self._precision)

    def sites(self, tokens_T: Array) -> dict[str, Array]:
        """Every site of one sequence."""
        lookup = Widened(self._weights).__getitem__
        config = self._source.config

        def follow(call: Call, value: Array) -> Array:
            site = call.site
            read = Read(config, site, tokens_T, call.values, self._weights, self._precision)
            known = {recipe.name: recipe for recipe in recipes_of(config, site)}
            places = (site.name, site.kind, site.operation)
            if not known:
                return np.asarray(self._precision.round(value), np.float64)
            name = next((self._recipes[p] for p in places if p in self._recipes), next(iter(known)))
            with np.errstate(all="ignore"):
                return self.made(site.name, known[name].make(read), self._precision)

        return dict(run(lookup, config, tokens_T, {}, alter=follow, keep=None))

    def made(self, name: str, span: Span, p: Precision) -> Array:
        """The number of each element, of those that a recipe allows."""
        return span.store(p).mid

    def activations(self, tokens: Array, visit: Visit) -> Array:
        rows = [self.sites(row) for row in tokens]
        for site in rows[0]:
            if not site.endswith(self._hides) or not self._hides:
                visit(site, np.stack([row[site] for row in rows]).astype(np.float32))
        return np.stack([row["logits"] for row in rows]).astype(np.float32)

    def logits(self, tokens: Array) -> Array:
        return self.activations(tokens, lambda *_: None)


OTHER = {"h.1.ln_1": "cast-before-gain", "gelu": "steps"}


def plain(source: Checkpoint) -> Port:
    return RoundingPort(source)


def other(source: Checkpoint) -> Port:
    return RoundingPort(source, recipes=OTHER)


def hides_attention(source: Checkpoint) -> Port:
    return RoundingPort(source, hides=("scores", "pattern"))


def logits_alone(source: Checkpoint) -> Any:
    port = RoundingPort(source)
    return lambda tokens: port.logits(tokens)


def wide(source: Checkpoint) -> Port:
    port = RoundingPort(source)
    port.dtype = "float32"
    return port


def breaks(source: Checkpoint) -> Port:
    port = RoundingPort(source)

    def activations(tokens: Array, visit: Visit) -> Array:
        raise ValueError("no such kernel")

    port.activations = activations  # type: ignore[method-assign]
    return port
