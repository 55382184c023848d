"""The states of the residual stream come from the oracle's forward pass, or from a port's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpt_verify.port import ACTIVATIONS, Dtype, Floats, Port, Tokens
from gpt_verify.reference.branches import Weights
from gpt_verify.reference.config import Config
from gpt_verify.reference.lens import RESIDUAL
from gpt_verify.reference.model import forward


def is_state(site: str) -> bool:
    """Whether this site is a state of the residual stream, which the lens can read."""
    return site.endswith(RESIDUAL)


def state_sites(config: Config) -> list[str]:
    """Every state of a model of this size, in order of computation."""
    blocks = [
        f"h.{i}.{half}" for i in range(config.n_layer) for half in ("resid_mid", "resid_post")
    ]
    return ["embed", *blocks]


def place(site: str) -> tuple[int, bool]:
    """The block that a state belongs to (−1 before the first), and whether it is inside it.

    ``h.3.resid_mid``, after attention, is inside block 3; ``h.3.resid_post`` is behind it.
    """
    if site == "embed":
        return -1, False
    return int(site.split(".")[1]), site.endswith(".resid_mid")


def oracle_states(
    weights: Weights, config: Config, tokens_T: NDArray[np.integer]
) -> Iterator[tuple[str, Floats]]:
    """The oracle's states, float64[T, D]."""
    return ((s, x_TD) for s, x_TD in forward(weights, config, tokens_T) if is_state(s))


def port_states(port: Port, tokens: Tokens) -> list[list[tuple[str, Floats]]]:
    """The states that a port shows when it runs on tokens int[B, T]: for each row of the batch.

    Empty lists where it shows none. The arrays are copies, in the port's own precision (float32
    for the narrower ones), which a port may show once and in any order: sites are ordered here.
    """
    shown: dict[str, Floats] = {}

    def visit(site: str, value: Floats, narrowest: Dtype | None = None) -> None:
        if is_state(site):
            shown[site] = np.array(value)

    if activations := port.offers().get(ACTIVATIONS):
        activations(tokens, visit)
    in_order = sorted(shown, key=lambda site: (place(site)[0], not place(site)[1]))
    return [[(site, shown[site][row]) for site in in_order] for row in range(len(tokens))]
