"""The oracle with two tables: one that tokens are looked up in, another for the last product.

GPT-2 has one table at both ends. To say what each end contributes, it takes two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.config import Config
from gpt_verify.reference.model import forward
from gpt_verify.sites import before_head

Floats = NDArray[np.floating]


class OtherLookup(Mapping[str, Floats]):
    """The same weights with another table in place of ``wte``. It may have the rows alone that are
    looked up, where no logits are asked for."""

    def __init__(self, weights: Mapping[str, Floats], lookup_VD: Floats) -> None:
        self._weights, self._lookup_VD = weights, lookup_VD

    def __getitem__(self, name: str) -> Floats:
        return self._lookup_VD if name == "wte" else self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def last_state(
    weights: Mapping[str, Floats], config: Config, tokens_T: NDArray[np.integer]
) -> Floats:
    """What the last product is given, float64[T, D]: the forward pass as far as the head."""
    last = before_head(config)
    return next(value for site, value in forward(weights, config, tokens_T) if site == last)
