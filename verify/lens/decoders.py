"""How a state of the residual stream becomes logits: what stands between it and wte.

A decoder maps x[T, D], in float64, to h[T, D]; the logits are h wteᵀ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_verify.lens.states import place
from gpt_verify.reference.branches import Layer, norm
from gpt_verify.reference.config import Config
from gpt_verify.reference.model import block
from gpt_verify.reference.ops import gelu, layer_norm, linear

Floats = NDArray[np.floating]
Weights = Mapping[str, NDArray[np.floating]]

#: States that are normalised at a time: they pass through the cache several times.
ROWS = 64


class Decoder(Protocol):
    """One way to read a state.

    Attributes:
        name: in words, as a heading says it.
    """

    name: str

    def decode(self, site: str, x_TD: Floats) -> Floats | None:
        """The state that wte is multiplied with; None where this decoder says nothing of such a
        state."""


class LnF:
    """The model's own end, ``ln_f``: the logit lens (nostalgebraist 2020)."""

    name = "ln_f"

    def __init__(self, weights: Weights, config: Config | None = None) -> None:
        """``config``: of a family, whose norm is another one."""
        self._config = None if config is None or config.own is None else config
        parts = "g" if self._config is not None and self._config.keys.norm.rms else "gb"
        self._own = {f"ln_f/{p}": np.asarray(weights[f"ln_f/{p}"], np.float64) for p in parts}

    def decode(self, site: str, x_TD: Floats) -> Floats:
        parts = range(0, len(x_TD), ROWS)
        return np.concatenate([self._normed(x_TD[i : i + ROWS]) for i in parts])

    def _normed(self, x_TD: Floats) -> Floats:
        if self._config is not None:
            return norm(x_TD, "ln_f", self._config, self._own.__getitem__)
        return layer_norm(x_TD, self._own["ln_f/g"], self._own["ln_f/b"])


class WithoutLnF:
    """Nothing: the state itself is multiplied with wte."""

    name = "without ln_f"

    def decode(self, site: str, x_TD: Floats) -> Floats:
        return x_TD


class FromBlock:
    """A state before block j goes through blocks j, j + 1, … and ln_f, skipping those between.

    With j the last block this is the lens "with the last block included". A state inside or after
    block j goes on from where it is, which leads to the model's own logits.

    Args:
        weights: of the checkpoint.
        config: sizes.
        first: j, 0 ≤ j < n_layer. Negative ones count from the end, −1 being the last block.

    Raises:
        ValueError: there is no such block.
    """

    def __init__(self, weights: Weights, config: Config, first: int) -> None:
        if not -config.n_layer <= first < config.n_layer:
            raise ValueError(f"there is no block {first}: the model has {config.n_layer}")
        self._weights, self._config, self._first = weights, config, first % config.n_layer
        self._ln_f = LnF(weights)
        self.name = f"from block {self._first}"

    def decode(self, site: str, x_TD: Floats) -> Floats:
        layer, inside = place(site)
        if inside and layer >= self._first:
            x_TD = self._mlp(x_TD, layer)
        for later in range(max(self._first, layer + 1), self._config.n_layer):
            steps = block(x_TD, Layer(self._config, later, self._weight, _exactly))
            ((_site, x_TD),) = deque(steps, maxlen=1)
        return self._ln_f.decode(site, x_TD)

    def _mlp(self, x_TD: Floats, layer: int) -> Floats:
        """The second half of a block: gpt-2 ``src/model.py:129``."""
        w, scope = self._weight, f"h{layer}"
        ln_2_TD = layer_norm(x_TD, w(f"{scope}/ln_2/g"), w(f"{scope}/ln_2/b"))
        act_TF = gelu(linear(ln_2_TD, w(f"{scope}/mlp/c_fc/w"), w(f"{scope}/mlp/c_fc/b")))
        return x_TD + linear(act_TF, w(f"{scope}/mlp/c_proj/w"), w(f"{scope}/mlp/c_proj/b"))

    def _weight(self, name: str) -> Floats:
        return np.asarray(self._weights[name], np.float64)


def _exactly(x: Floats) -> Floats:
    """Nothing is rounded between operations."""
    return x
